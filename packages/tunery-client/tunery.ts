// Written by `make openapi` from the OpenAPI document. Change the code, not this file.

export interface Lora {
  /** "all-linear" (every linear layer but lm_head; the default) or names of the base model's layers. */
  target_modules?: "auto" | Array<string> | string | null;
  /** Rank of the adapter; 16 by default. */
  r?: "auto" | number | null;
  /** Scale: the update is alpha / r times BA; 2r by default. */
  alpha?: "auto" | number | null;
  /** Dropout before the adapter while training; 0 by default. */
  dropout?: "auto" | number | null;
  /** Scale by alpha / sqrt(r) instead (rsLoRA); false by default. */
  use_rslora?: "auto" | boolean | null;
  /** Train the length of each row of a weight, too (DoRA); slower. */
  use_dora?: "auto" | boolean | null;
  /** Ranks of single layers: the end of a layer's name, or a regular expression (RE2) for it -> rank. */
  rank_pattern?: "auto" | Record<string, number> | null;
  /** The same for alpha. */
  alpha_pattern?: "auto" | Record<string, number> | null;
  /** Modules to train whole and save beside the adapter: norms, embed_tokens, lm_head. */
  modules_to_save?: "auto" | Array<string> | string | null;
  /** Adapt all experts of a mixture of experts, too; false by default: they stay frozen. Without dropout and DoRA. */
  experts?: "auto" | boolean | null;
  /** Stacked weights of experts to adapt, one by one, as in PEFT; none by default. */
  target_parameters?: "auto" | Array<string> | string | null;
  /** Trained biases are not offered. */
  bias?: "auto" | "none" | null;
  /** Other initializations are not offered. */
  init?: "auto" | "default" | null;
}

export interface Quantization {
  /** Bits per weight of the frozen base; 4 by default. */
  bits?: "auto" | 4 | 8 | null;
  /** Of 4 bits; NF4 by default. */
  type?: "auto" | "nf4" | "fp4" | null;
  /** bfloat16 by default; without instructions for it float16 on a GPU, float32 on a CPU. */
  compute_dtype?: "auto" | "bfloat16" | "float16" | "float32" | null;
  /** Of 4 bits: quantize the block scales too; true by default. */
  double_quant?: "auto" | boolean | null;
}

export interface StringCheck {
  /** The type of the grader. */
  type: "string_check";
  /** The name in the results, different for each grader. */
  name: string;
  /** The graded text, a template. */
  input: string;
  /** The expected text, a template. */
  reference: string;
  /** eq: equal; ne: not equal; like: the input contains the reference; ilike: the same in any case. */
  operation: "eq" | "ne" | "like" | "ilike";
}

export interface TextSimilarity {
  /** The type of the grader. */
  type: "text_similarity";
  /** The name in the results, different for each grader. */
  name: string;
  /** The graded text, a template. */
  input: string;
  /** The expected text, a template. */
  reference: string;
  /** How the similarity is measured. */
  evaluation_metric: "fuzzy_match" | "bleu" | "rouge_1" | "rouge_2" | "rouge_3" | "rouge_4" | "rouge_5" | "rouge_l";
  /** The summary has the share of scores from this value on. */
  pass_threshold?: number | null;
}

export interface GraderMessage {
  /** The author of the message. */
  role: "system" | "developer" | "user" | "assistant";
  /** A text; `{"type": "input_text", "text": ...}`, as OpenAI returns it, is one, too. */
  content: string;
  /** OpenAI's; it has no effect. */
  type?: "message" | null;
}

export interface SamplingParameters {
  /** 0 by default. */
  temperature?: number | null;
  /** Nucleus sampling. */
  top_p?: number | null;
  /** The seed of the sampling. */
  seed?: number | null;
  /** The longest answer, in tokens. */
  max_completions_tokens?: number | null;
  /** For models that reason. */
  reasoning_effort?: string | null;
}

export interface ScoreModel {
  /** The type of the grader. */
  type: "score_model";
  /** The name in the results, different for each grader. */
  name: string;
  /** The model that scores. */
  model: string;
  /** The messages to the model, with templates. */
  input: Array<GraderMessage>;
  /** An endpoint that the operator has named. Default: the only one. */
  endpoint?: string | null;
  /** Lowest and highest score. */
  range?: Array<number>;
  /** Parameters of the request to the model. */
  sampling_params?: SamplingParameters | null;
  /** The summary has the share of scores from this value on. */
  pass_threshold?: number | null;
}

export interface LabelAccuracy {
  /** The type of the grader. */
  type: "label_accuracy";
  /** The name in the results, different for each grader. */
  name: string;
  /** The graded text, a template. */
  input?: string;
  /** The expected text, a template. */
  reference?: string;
  /** All labels. Default: those of the file. */
  labels?: Array<string> | null;
  /** Whether Yes and yes are the same label. */
  ignore_case?: boolean;
}

export interface JsonValid {
  /** The type of the grader. */
  type: "json_valid";
  /** The name in the results, different for each grader. */
  name: string;
  /** The graded text, a template. */
  input?: string;
}

export interface JsonFields {
  /** The type of the grader. */
  type: "json_fields";
  /** The name in the results, different for each grader. */
  name: string;
  /** The graded text, a template. */
  input?: string;
  /** The expected text, a template. */
  reference?: string;
  /** The compared fields. Default: all of the expected object. */
  fields?: Array<string> | null;
}

export interface Reference {
  /** An endpoint that the operator has named. */
  endpoint?: string | null;
  /** The model at the endpoint. */
  model?: string | null;
  /** A field of the rows with recorded answers. */
  field?: string | null;
}

export interface PromoteIf {
  /** The name of a grader of this evaluation. */
  grader: string;
  /** How far below 0 the interval of the difference may begin. Default: 0. */
  margin?: number;
}

export interface Evaluation {
  /** Without graders the answers are collected and not scored. */
  graders?: Array<StringCheck | TextSimilarity | ScoreModel | LabelAccuracy | JsonValid | JsonFields>;
  /** A larger file is sampled: a random selection, always the same one. */
  max_rows?: number;
  /** The longest answer, in tokens. */
  max_new_tokens?: number;
  /** How the base model is loaded for all answers: as in the training, or unquantized. */
  base_precision?: "trained" | "16-bit";
  /** A model to compare the adapter with. */
  reference?: Reference | null;
  /** Deliver the adapter only if it is no worse. */
  promote_if?: PromoteIf | null;
  /** A file of held-out rows: purpose evals or fine-tune. */
  file: string;
}

export interface EarlyStopping {
  /** The number of consecutive validations without an improvement before training stops. */
  patience?: number;
  /** The decrease of the loss, in nats, that counts as an improvement. */
  threshold?: number;
}

export interface KtoHyperparameters {
  /** Times the automatic learning rate, of which methods with preferences take a part; 1 by default. */
  learning_rate_multiplier?: "auto" | number | null;
  /** Absolute; excludes a multiplier. By default the base model's, adjusted to the run's length. */
  learning_rate?: "auto" | number | null;
  /** Passes over the data; OpenAI's rule by default. */
  n_epochs?: "auto" | number | null;
  /** Examples per optimizer step; by default examples / 32, at most 8. More where a GPU waits for small steps and the run keeps 1,000 steps. */
  batch_size?: "auto" | number | null;
  /** Share of the steps; 0.03 by default. */
  warmup_ratio?: "auto" | number | null;
  /** 0 by default. */
  weight_decay?: "auto" | number | null;
  /** 1 by default. */
  max_grad_norm?: "auto" | number | null;
  /** adamw by default: its two moments take 8 bytes for each trained parameter. Those of adamw_8bit take 2, and the result differs by their rounding. */
  optimizer?: "auto" | "adamw" | "adamw_8bit" | null;
  /** linear by default. */
  lr_scheduler_type?: "auto" | "linear" | "cosine" | "constant" | null;
  /** In tokens; the base model's by default. Longer is cut. */
  context_length?: "auto" | number | null;
  /** Several examples in one packed batch; never changes the result. true by default. */
  packing?: "auto" | boolean | null;
  /** Stop after so many optimizer steps. */
  max_steps?: "auto" | number | null;
  /** End when the full validation loss was not more than `threshold` nats below its lowest in `patience` validations in a row. Off by default. Needs a validation_file. */
  early_stopping?: "auto" | EarlyStopping | boolean | null;
  /** Optimizer steps between validations; at the end of each epoch by default. Needs a validation_file. */
  eval_steps?: "auto" | number | null;
  /** The result is the adapter with the lowest full validation loss, not the last one. On with early_stopping, else off. Needs a validation_file. */
  promote_best?: "auto" | boolean | null;
  /** Of methods with preferences alone: the strength of the preference, and of the penalty for moving away from the base model, at most 2 unless the loss is simpo; 0.1 by default, 2 for the loss simpo. */
  beta?: "auto" | number | null;
  /** Of the method kto alone: the weight of desirable answers (label true) in the loss; 1 by default. */
  desirable_weight?: "auto" | number | null;
  /** Of the method kto alone: the weight of undesirable answers (label false) in the loss; 1 by default. */
  undesirable_weight?: "auto" | number | null;
}
