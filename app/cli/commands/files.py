"""`tunery files`: upload a dataset, list what is there, bring it here, delete it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.adapter_archive import check, fetch
from app.cli.client.references import FileId, FileIds
from app.cli.client.service_discovery import file_path
from app.cli.client.upload import send_file
from app.cli.errors import UsageError
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_fields, print_json, print_line, print_note, print_table, size_text, time_text
from app.cli.output.progress import bytes_bar

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer(no_args_is_help=True, help="Datasets and results on the server.")


@commands.command("upload")
@with_client
def upload(
    client: "Client",
    path: Annotated[Path, typer.Argument(help="A JSONL file: one chat or prompt/completion example a line.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "fine-tune",
    resume: Annotated[str | None, typer.Option(help="Go on with this upload, which was broken off.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file and print its id. From 64 MB on it goes up as a stream that is taken up again after a break."""
    file = send(client, path, purpose, resume)
    if as_json:
        print_json(file)
    else:
        print_line(file["id"])


@commands.command("list")
@with_client
def list_files(
    client: "Client",
    purpose: Annotated[str | None, typer.Option(help="Only files for this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the project's files, newest first."""
    asked = {"purpose": purpose} if purpose else {}
    found, has_more = client.first("files", limit, max_page=1000, **asked)
    if has_more:
        print_note(f"These are the newest {limit} files; --limit shows more.")
    if as_json:
        print_json(found)
        return
    rows = [
        [file["id"], file["filename"], size_text(file["bytes"]), file["purpose"], time_text(file["created_at"])]
        for file in found
    ]
    columns = ["id", "filename", "size", "purpose", "created"]
    print_table(columns, rows, "No files. `tunery files upload PATH` adds one.")


@commands.command("get")
@with_client
def get(client: "Client", file_id: FileId, as_json: AsJson = False) -> None:
    """Show one file."""
    file = client.get(file_path(file_id))
    if as_json:
        print_json(file)
    else:
        print_fields(_fields(file))


@commands.command("download")
@with_client
def download(
    client: "Client",
    file_id: FileId,
    path: Annotated[Path | None, typer.Option("--output", "-o", help="Absent: its own name, here.")] = None,
) -> None:
    """Bring a file here, every byte verified. An interrupted download goes on where it broke off."""
    file = client.get(file_path(file_id))
    to = path or Path(Path(file["filename"]).name or file_id)
    if to.exists() or to.is_symlink():
        raise UsageError(f"{to} is there already. Choose another place with -o, or remove it.")
    to.parent.mkdir(parents=True, exist_ok=True)
    fetch_file(client, file, to.with_name(f".{to.name}.{file_id}.part")).replace(to)
    print_line(str(to))


@commands.command("delete")
@with_client
def delete(
    client: "Client",
    file_ids: FileIds,
) -> None:
    """Delete files for good. Their bytes go as soon as no unfinished job needs them."""
    for path in [file_path(file_id) for file_id in file_ids]:
        print_line(f"{client.delete(path)['id']} deleted")


def fetch_file(client: "Client", file: dict[str, Any], part: Path) -> Path:
    """Bring a file to `part`, going on from what is there of it, and verify it."""
    part.touch()
    have = part.stat().st_size
    if have < file["bytes"]:
        with bytes_bar(f"downloading {file['filename']}", file["bytes"], have) as advance:
            fetch(client, file_path(file["id"], "content"), part, file["bytes"], advance)
    check(part, file["bytes"], file["sha256"])
    return part


def send(client: "Client", path: Path, purpose: str = "fine-tune", upload_id: str | None = None) -> dict[str, Any]:
    with _readable(path) as size_bytes, bytes_bar(f"uploading {path.name}", size_bytes) as advance:
        return send_file(client, path, purpose, upload_id, advance)


def _fields(file: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("id", file["id"]),
        ("filename", file["filename"]),
        ("size", size_text(file["bytes"])),
        ("lines", f"{file['line_count']:,}" if file.get("line_count") is not None else ""),
        ("SHA-256", file["sha256"]),
        ("purpose", file["purpose"]),
        ("created", time_text(file["created_at"])),
        ("expires", time_text(file["expires_at"]) if file.get("expires_at") else ""),
    ]


@contextmanager
def _readable(path: Path) -> Iterator[int]:
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file." if path.exists() else f"There is no file {path}.")
        path.open("rb").close()
    except PermissionError:
        raise UsageError(f"{path} can't be read by this user.") from None
    yield path.stat().st_size
