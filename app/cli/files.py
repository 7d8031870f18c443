"""`tunery files`: upload a dataset, list what is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import Misused
from app.cli.options import AsJson, with_client
from app.cli.output import print_json, print_line, print_table, size_text, time_text
from app.cli.progress import bytes_bar
from app.cli.sending import send_file

if TYPE_CHECKING:
    from app.cli.client import Client

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
    found = list(islice(client.pages("files", min(limit, 1000), **asked), limit))
    if as_json:
        print_json(found)
        return
    rows = [
        [file["id"], file["filename"], size_text(file["bytes"]), file["purpose"], time_text(file["created_at"])]
        for file in found
    ]
    columns = ["id", "filename", "size", "purpose", "created"]
    print_table(columns, rows, "No files. `tunery files upload PATH` adds one.")


def send(client: "Client", path: Path, purpose: str = "fine-tune", upload_id: str | None = None) -> dict[str, Any]:
    with _readable(path) as size_bytes, bytes_bar(f"uploading {path.name}", size_bytes) as advance:
        return send_file(client, path, purpose, upload_id, advance)


@contextmanager
def _readable(path: Path) -> Iterator[int]:
    try:
        if not path.is_file():
            raise Misused(f"{path} is not a file." if path.exists() else f"There is no file {path}.")
        path.open("rb").close()
    except PermissionError:
        raise Misused(f"{path} can't be read by this user.") from None
    yield path.stat().st_size
