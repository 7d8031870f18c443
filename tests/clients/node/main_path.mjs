// The main path with the official Node client: upload, create, poll, events, checkpoints, adapter, errors.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import OpenAI, { toFile } from 'openai';

const context = JSON.parse(readFileSync(process.env.TUNERY_CONTEXT, 'utf-8'));
const client = new OpenAI({ baseURL: context.base_url, apiKey: context.key });
const ENDED = ['succeeded', 'failed', 'cancelled'];
const JOB_MILLISECONDS = 300_000;

const data = Array.from({ length: 10 }, (_, number) =>
  JSON.stringify({
    messages: [
      { role: 'user', content: `say ${number}` },
      { role: 'assistant', content: `it is ${number}` },
    ],
  }),
).join('\n') + '\n';

async function finished(id) {
  const deadline = Date.now() + JOB_MILLISECONDS;
  for (;;) {
    const job = await client.fineTuning.jobs.retrieve(id);
    if (ENDED.includes(job.status)) return job;
    assert.ok(Date.now() < deadline, `${id} is still ${job.status}`);
    await pause(300);
  }
}

async function all(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

test('the models on offer are listed, with and without a slash in their names', async () => {
  const ids = (await all(client.models.list())).map((model) => model.id);
  assert.ok(ids.includes(context.model));
  assert.equal((await client.models.retrieve(context.slashed_model)).id, context.slashed_model);
});

test('a file goes up, comes back the same, and is deleted', async () => {
  const file = await client.files.create({ file: await toFile(Buffer.from(data), 'train.jsonl'), purpose: 'fine-tune' });
  assert.equal(file.bytes, Buffer.byteLength(data));
  assert.equal(await (await client.files.content(file.id)).text(), data);
  assert.ok((await client.files.waitForProcessing(file.id, { pollInterval: 100 })).status === 'processed');
  assert.ok((await all(client.files.list({ limit: 1, purpose: 'fine-tune' }))).some((listed) => listed.id === file.id));
  assert.equal((await client.files.delete(file.id)).deleted, true);
  await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
});

test('a job is trained and its adapter downloaded', { timeout: JOB_MILLISECONDS }, async () => {
  const file = await client.files.create({ file: await toFile(Buffer.from(data), 'train.jsonl'), purpose: 'fine-tune' });
  const created = await client.fineTuning.jobs.create({
    model: context.model,
    training_file: file.id,
    suffix: 'node',
    metadata: { from: 'node' },
    method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 2, batch_size: 5 } } },
    lora: { r: 4 },
  });
  assert.equal(created.lora.r, 4);
  const job = await finished(created.id);
  assert.equal(job.status, 'succeeded', JSON.stringify(job.error));
  assert.ok(job.fine_tuned_model.startsWith(`ft:${context.model}:`));
  const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 3 }));
  assert.equal(events[0].message, 'The job has successfully completed');
  const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
  assert.deepEqual(checkpoints.map((checkpoint) => checkpoint.step_number), [4, 2]);
  assert.equal(checkpoints[0].fine_tuned_model_checkpoint, job.fine_tuned_model);
  const results = await (await client.files.content(job.result_files[0])).text();
  assert.ok(results.startsWith('step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy'));
  const archive = Buffer.from(await (await client.files.content(job.adapter.archive_file_id)).arrayBuffer());
  assert.equal(createHash('sha256').update(archive).digest('hex'), job.adapter.sha256);
  assert.equal((await client.models.delete(job.fine_tuned_model)).deleted, true);
});

test('what is refused is the right exception, after one request', async () => {
  const requests = [];
  const counting = new OpenAI({
    baseURL: context.base_url,
    apiKey: context.key,
    fetch: (url, init) => (requests.push(String(url)), fetch(url, init)),
  });
  const file = await client.files.create({ file: await toFile(Buffer.from(data), 'train.jsonl'), purpose: 'fine-tune' });
  await assert.rejects(
    counting.fineTuning.jobs.create({ model: context.model, training_file: file.id, lora: { rnk: 8 } }),
    (error) => error instanceof OpenAI.BadRequestError && error.code === 'unknown_parameter' && error.param === 'lora.rnk',
  );
  const job = await client.fineTuning.jobs.create({ model: context.model, training_file: file.id });
  assert.equal((await client.fineTuning.jobs.cancel(job.id)).status, 'cancelled');
  await assert.rejects(counting.fineTuning.jobs.pause(job.id), OpenAI.BadRequestError);
  await assert.rejects(counting.fineTuning.jobs.retrieve('ftjob-nothere'), OpenAI.NotFoundError);
  assert.equal(requests.length, 3);
  const wrong = new OpenAI({ baseURL: context.base_url, apiKey: 'wrong' });
  await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
});
