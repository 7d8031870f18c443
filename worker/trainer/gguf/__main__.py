"""Make a GGUF export: `python -m worker.trainer.gguf BASE_DIR ADAPTER_DIR OUT_DIR TYPE`.

TYPE is F16, Q8_0 or Q4_K_M for the merged model, or "adapter" for the LoRA alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers.utils import logging

from app.domain.artifacts.full_disk import is_disk_full
from app.domain.jobs.states import ExitCode
from worker.trainer.gguf.answers import DifferentAnswers
from worker.trainer.gguf.converter import CannotConvert
from worker.trainer.gguf.export import export
from worker.trainer.gguf.llama_cpp import LlamaCppError
from worker.trainer.merge import CannotMerge, OtherBase
from worker.trainer.runtime.process import die_with_parent

EXIT_CODES: dict[type[Exception], int] = {
    CannotMerge: ExitCode.BAD_SPEC,
    OtherBase: ExitCode.OTHER_BASE,
    CannotConvert: ExitCode.CANNOT_CONVERT,
    LlamaCppError: ExitCode.CANNOT_CONVERT,
    DifferentAnswers: ExitCode.DIFFERENT_ANSWERS,
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 4:
        print("usage: python -m worker.trainer.gguf BASE_DIR ADAPTER_DIR OUT_DIR TYPE", file=sys.stderr)
        return ExitCode.BAD_SPEC
    die_with_parent()
    base, adapter, destination, kind = arguments
    try:
        manifest = export(Path(base), Path(adapter), Path(destination), kind)
    except tuple(EXIT_CODES) as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return EXIT_CODES[type(error)]
    except OSError as error:
        print(f"The GGUF file cannot be written: {error.strerror or error}.", file=sys.stderr)
        return ExitCode.DISK_FULL if is_disk_full(error) else ExitCode.STORAGE
    print(json.dumps({"directory": destination, **manifest["gguf"]}))
    return ExitCode.DONE


if __name__ == "__main__":
    logging.disable_progress_bar()
    raise SystemExit(main(sys.argv[1:]))
