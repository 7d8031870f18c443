"""`tunery files`: upload, list, show, download and delete files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.adapter_archive import download_with_resume, verify_archive
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
    path: Annotated[Path, typer.Argument(help="JSONL file with one chat or prompt/completion example per line.")],
    purpose: Annotated[str, typer.Option(help="Purpose of the file.")] = "fine-tune",
    resume: Annotated[str | None, typer.Option(help="Id of an interrupted upload to resume.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file and print its id. An upload of 64 MB or more is resumed after a lost connection."""
    file = upload_with_progress(client, path, purpose, resume)
    if as_json:
        print_json(file)
    else:
        print_line(file["id"])


@commands.command("list")
@with_client
def list_files(
    client: "Client",
    purpose: Annotated[str | None, typer.Option(help="Only files with this purpose.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of files, newest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the project's files, newest first."""
    filters = {"purpose": purpose} if purpose else {}
    files, has_more = client.first_items("files", limit, max_page=1000, **filters)
    if has_more:
        print_note(f"Shows the newest {limit} files; use --limit to show more.")
    if as_json:
        print_json(files)
        return
    rows = [
        [file["id"], file["filename"], size_text(file["bytes"]), file["purpose"], time_text(file["created_at"])]
        for file in files
    ]
    columns = ["id", "filename", "size", "purpose", "created"]
    print_table(columns, rows, "No files. Upload one with `tunery files upload PATH`.")


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
    path: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output path. Default: the file's name, in the current directory."),
    ] = None,
) -> None:
    """Download and verify a file. An interrupted download is resumed."""
    file = client.get(file_path(file_id))
    destination = path or Path(Path(file["filename"]).name or file_id)
    if destination.exists() or destination.is_symlink():
        raise UsageError(f"{destination} already exists. Choose another path with -o, or remove it.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.{file_id}.part")
    download_file(client, file, part).replace(destination)
    print_line(str(destination))


@commands.command("delete")
@with_client
def delete(client: "Client", file_ids: FileIds) -> None:
    """Delete files permanently. The stored bytes are deleted once no unfinished job needs them."""
    for path in [file_path(file_id) for file_id in file_ids]:
        print_line(f"{client.delete(path)['id']} deleted")


def download_file(client: "Client", file: dict[str, Any], part: Path) -> Path:
    """Download a file to `part`, after the bytes that it already has, and verify it."""
    part.touch()
    existing_bytes = part.stat().st_size
    if existing_bytes < file["bytes"]:
        with bytes_bar(f"downloading {file['filename']}", file["bytes"], existing_bytes) as advance:
            download_with_resume(client, file_path(file["id"], "content"), part, file["bytes"], advance)
    verify_archive(part, file["bytes"], file["sha256"])
    return part


def upload_with_progress(
    client: "Client",
    path: Path,
    purpose: str = "fine-tune",
    upload_id: str | None = None,
    expires_after: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Upload a file with a progress bar and return its object. Raises UsageError if it cannot be read."""
    require_readable(path)
    with bytes_bar(f"uploading {path.name}", path.stat().st_size) as advance:
        return send_file(client, path, purpose, upload_id, expires_after, advance)


def require_readable(path: Path) -> None:
    """Raises UsageError if `path` is not a file that this user can read."""
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file." if path.exists() else f"No such file: {path}.")
        path.open("rb").close()
    except PermissionError:
        raise UsageError(f"This user cannot read {path}.") from None


def _fields(file: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("id", file["id"]),
        ("filename", file["filename"]),
        ("size", size_text(file["bytes"])),
        ("lines", f"{file['line_count']:,}" if file.get("line_count") is not None else ""),
        ("SHA-256", file["sha256"]),
        ("origin", f"{file['origin']['service']} {file['origin']['id']}" if file.get("origin") else ""),
        ("purpose", file["purpose"]),
        ("created", time_text(file["created_at"])),
        ("expires", time_text(file["expires_at"]) if file.get("expires_at") else ""),
    ]
