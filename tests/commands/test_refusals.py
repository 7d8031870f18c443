"""What the commands refuse: the exit code of each refusal, and its sentence in tests/sentences.json."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from app.db.tables import Job
from app.settings import Settings
from tests.commands.conftest import Tunery
from tests.sentences import Reviewed

ID = re.compile(r"\b[a-z]+[-_][0-9a-f]{12,}\b")
DONE, WAITING = "{done}", "{waiting}"  # a job that has succeeded, and one that no worker has begun
REFUSED = {
    "adapters": {
        f"adapters download {DONE} --checkpoint 3 -o {{here}}/x": 3,
        f"adapters download {WAITING} -o {{here}}/x": 2,
        "adapters download ftjob-none -o {here}/x": 3,
        f"adapters download {DONE} -o {{here}}": 2,
        f"adapters compare {DONE} --base {{here}}/none --prompts {{dataset}}": 2,
        f"adapters merge {DONE} --base {{here}} --to {{here}}": 2,
    },
    "ask": {"ask ft:nothing Where?": 3, "ask tiny ' '": 2, f"ask {WAITING} Where?": 3},
    "eval": {
        f"eval {DONE} --file {{dataset}} --similarity cosine": 2,
        f"eval {DONE} --file {{table}}": 2,
        f"eval {DONE} --file {{dataset}} --graders {{table}}": 2,
        f"eval {DONE} --file {{dataset}} --promote-if label:much": 2,
        f"eval {DONE} --file {{dataset}} --report {{here}}/none/x": 2,
        f"eval {DONE} --file {{dataset}} --results {{here}}/none/x": 2,
    },
    "exports": {
        f"jobs export {DONE} --type onnx": 2,
        f"jobs export {DONE} -o {{here}}": 2,
        f"jobs export {DONE} --detach -o {{here}}/x": 2,
        f"jobs delete-export {DONE} a/b": 3,
        f"jobs deliver {DONE} --to nowhere": 2,
    },
    "files": {
        "files upload {here}/missing.jsonl": 2,
        "files upload {here}": 2,
        "files upload {broken}": 2,
        "files upload {dataset} --resume upload_unknown": 3,
        "files get file-none": 3,
        "files download ../models": 3,
        "files delete file-none": 3,
        "files validate {dataset} --model tony": 3,
        "files validate {dataset} --model tiny --validation-file none.jsonl": 2,
    },
    "jobs": {
        "jobs create --model tony --training-file {dataset}": 3,
        "jobs create --model tiny --training-file {dataset} --set lora_rnk=8": 2,
        "jobs create --model tiny --training-file {dataset} --set seed=1 --set seed=2": 2,
        "jobs create --model tiny --training-file {dataset} --validation-file nothing.jsonl": 2,
        f"jobs clone {DONE} --set lora.r=999": 2,
        "jobs list --status done": 2,
        f"jobs set {DONE} --priority 1": 2,
        f"jobs set {WAITING}": 2,
        f"jobs set {WAITING} --metadata a": 2,
        f"jobs set {WAITING} --metadata a=b --no-metadata": 2,
        f"jobs cancel {DONE}": 2,
        f"jobs pause {DONE}": 2,
        f"jobs resume {DONE}": 2,
        f"jobs logs {DONE} --attempt 9": 3,
        "jobs get ftjob-none": 3,
        "jobs watch ftjob-none": 3,
        "jobs attempts ftjob-none": 3,
        "jobs get ../models": 3,
        "jobs get ключ": 3,
        "jobs get ''": 3,
    },
    "keys": {
        "keys create --project ' '": 2,
        "keys create --project lab": 3,
        "keys create --project default --expires-in soon": 2,
        "keys create --project default --expires-in 1s": 2,
        "keys create --project lab --create-project --scope root": 2,
        "keys rotate key_none": 3,
        "keys revoke key_none": 3,
    },
    "models": {
        "models where tony": 3,
        "models alias gpt-old tony": 2,
        "models add 'x y' /outside": 2,
        "models add x {here}/tiny --revision main": 2,
        "models add x /outside": 2,
        "models delete tiny": 4,
        "models delete no/such": 3,
        "models delete a?b=c": 3,
        "models delete ../files": 3,
    },
    "projects": {
        "projects create ' '": 2,
        "projects create default": 2,
        "projects create lab --max-stored-bytes much": 2,
        "projects create lab --max-stored-bytes 1,000GB": 2,
        "projects create lab --max-stored-bytes 500GB/month": 2,
        "projects create lab --max-queued-jobs 5GB": 2,
        "projects create lab --max-queued-jobs -1": 2,
        "projects create lab --max-stored-bytes 1e30": 2,
        "projects create lab --max-requests-per-second 0": 2,
        "projects create lab --share-weight nan": 2,
        "projects show nobody": 3,
        "projects set nobody": 3,
        "projects unarchive nobody": 3,
        "allow-urgent nobody": 3,
        "retention default --files 0": 2,
        "retention --files 90": 2,
        "retention nobody": 3,
    },
    "targets and webhooks": {
        "targets create x --kind directory --set path": 2,
        "targets create x --kind s3 --credentials {here}/none": 2,
        "targets update x": 2,
        "targets show nowhere": 3,
        "webhooks create http://127.0.0.1/": 2,
        "webhooks deliveries wh_none": 3,
    },
}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"base_model_directories": (str(tmp_path),)})


@pytest.fixture
def words(trained_job: Job, waiting_job: Job, dataset: Path, tmp_path: Path) -> dict[str, str]:
    """What the commands of the cases name."""
    table, broken = tmp_path / "table.csv", tmp_path / "broken.jsonl"
    table.write_text("text,label\nHello,x\n")
    broken.write_bytes(dataset.read_bytes() + b"nonsense\n")
    paths = {"dataset": dataset, "table": table, "broken": broken, "here": tmp_path}
    return {"done": trained_job.id, "waiting": waiting_job.id} | {name: str(path) for name, path in paths.items()}


@pytest.mark.parametrize("commands", REFUSED.values(), ids=REFUSED)
def test_a_refusal_has_its_exit_code_and_sentence_and_changes_nothing(
    operator: Tunery,
    words: dict[str, str],
    tmp_path: Path,
    commands: dict[str, int],
    reviewed: Reviewed,
    subtests: pytest.Subtests,
) -> None:
    def state() -> list[object]:
        lists = [operator(kind, "list", "--json").json for kind in ("files", "jobs", "projects", "targets", "webhooks")]
        return [[row["id"] for row in rows] for rows in lists]

    before = state()
    for command, exit_code in commands.items():
        with subtests.test(command):
            done = operator(*shlex.split(command.format(**words)))
            assert (done.exit_code, done.out) == (exit_code, ""), done.err
            error = done.err.partition("Error: ")[2].replace(str(tmp_path), "HERE").strip()
            reviewed(f"{command}: {ID.sub('ID', error)}")
    assert state() == before
