"""Uploads, the conversion of a CSV, and the report on a dataset."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.dashboard import sign_in
from tests.dashboard.browser.world import World, tickets_jsonl
from tests.datasets.workbooks import workbook_members, zipped
from tests.deadline import until
from tests.factories import chat_lines

MEGABYTE = 1 << 20
HEAP_BYTES = "performance.memory.usedJSHeapSize"
CSV = "question;answer;note\n" + "".join(f'"What, is {n}?";"It is\n{n}";=1+1\n' for n in range(12))


def signed_in(web_url: str, key: str) -> httpx2.Client:
    """A signed-in client."""
    return httpx2.Client(base_url=web_url, cookies=sign_in(web_url, key), trust_env=False)


def drop(page: Page, *files: Path) -> None:
    page.locator("input[type=file]").set_input_files(list(files))


def test_a_dropped_file_is_checked_line_by_line(open_page: Open, tmp_path: Path) -> None:
    lines = chat_lines(12).split(b"\n")
    lines[4] = b'{"messages": [{"content": "no role"}]}'
    file = tmp_path / "broken lines.jsonl"
    file.write_bytes(b"\n".join(lines))
    page = open_page("/datasets")
    drop(page, file)
    page.wait_for_url(re.compile(r"/datasets/file-"))
    expect(page.get_by_text("Not usable for training")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="role").first).to_contain_text("5")
    page.get_by_role("button", name="Show row of line 5").first.click()
    row = page.get_by_role("group", name="Row of line 5")
    expect(row).to_be_in_viewport()
    expect(row.get_by_text("no role").last).to_be_visible()
    page.wait_for_url("**line=5")
    page.reload()
    expect(row).to_be_in_viewport()


def test_a_valid_file_is_shown_as_chats_and_as_the_model_sees_it(open_page: Open, world: World) -> None:
    page = open_page(f"/datasets/{world.files['tickets']}")
    expect(page.get_by_text("Valid", exact=True)).to_be_visible()
    tokens = page.get_by_role("group", name="The text as the model sees it").first
    expect(tokens.locator("mark").first).to_be_visible()
    expect(tokens.locator(".t-special").first).to_have_text("<|im_start|>")
    expect(page.get_by_role("img", name=re.compile("Histogram of lengths"))).to_be_visible()
    expect(page.get_by_text("You answer support tickets briefly.").first).to_be_visible()
    page.get_by_role("spinbutton", name="Context length").fill("32")
    expect(page.get_by_text(re.compile(r"\(100\.0 %\)"))).to_be_visible()
    expect(tokens.locator("s.t-cut").first).to_be_visible()


def test_hostile_rows_stay_text(open_page: Open, world: World) -> None:
    page = open_page(f"/datasets/{world.files['hostile']}")
    expect(page.get_by_text("<script>window.pwned = 1</script>").first).to_be_visible()
    expect(page.get_by_text("\\u202etxet desrever\\u202c").first).to_be_visible()
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script").count() == 0


def test_a_csv_becomes_examples_by_choosing_columns(open_page: Open, tmp_path: Path) -> None:
    file = tmp_path / "tickets.csv"
    file.write_text(CSV, encoding="utf-8-sig")
    page = open_page("/datasets")
    drop(page, file)
    page.wait_for_url(re.compile("/datasets/convert/table-"))
    expect(page.get_by_label("User (question)")).to_have_value("question")
    page.get_by_label("Assistant (answer)").select_option("question")
    expect(page.get_by_text("The question and the answer are the same column.")).to_be_visible()
    page.get_by_label("Assistant (answer)").select_option("answer")
    expect(page.get_by_text("What, is 0?")).to_be_visible()
    page.get_by_role("button", name="Upload only").click()
    page.wait_for_url(re.compile(r"/datasets/file-"))
    expect(page.get_by_text("tickets.jsonl").first).to_be_visible()
    expect(page.get_by_text("Valid", exact=True)).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert len(rows) == 11
    assert all("\n" in row["messages"][1]["content"] for row in rows)
    page.get_by_role("link", name="The rows kept for validation").click()
    expect(page.get_by_role("heading", name="tickets-held-out.jsonl")).to_be_visible()
    expect(page.get_by_text("1 of 12 rows")).to_be_visible()


def test_a_workbook_is_dropped_seen_and_trained(open_page: Open, world: World, tmp_path: Path) -> None:
    """With a share of the rows of each label, which the job validates and evaluates with."""
    rows = [(f"ticket {n}", "card" if n % 3 else "pin") for n in range(30)]
    (tmp_path / "bank.xlsx").write_bytes(zipped(workbook_members([("text", "label"), *rows])))
    page = open_page("/datasets")
    drop(page, tmp_path / "bank.xlsx")
    page.wait_for_url(re.compile("/datasets/convert/table-"))
    expect(page.get_by_role("row", name="card")).to_contain_text("18")
    page.get_by_label("Keep for validation (%)").fill("20")
    expect(page.get_by_role("row", name="card")).to_contain_text("16")
    expect(page.get_by_role("row", name="pin")).to_contain_text("2")
    expect(page.get_by_text("ticket 0", exact=True)).to_be_visible()
    page.get_by_role("button", name="Train").click()
    page.wait_for_url(re.compile(r"/jobs/new\?file=file-"))
    expect(page.get_by_text(re.compile(r"^Fits\. About "))).to_be_visible()
    page.get_by_role("button", name="Create job").click()
    page.wait_for_url(re.compile("/jobs/ftjob-"))
    with httpx2.Client(headers={"Authorization": f"Bearer {world.admin_key}"}, trust_env=False) as api:
        job = api.get(f"{world.api_url}/v1/fine_tuning/jobs/{page.url.split('/jobs/')[1].split('?')[0]}").json()
        training_file = api.get(f"{world.api_url}/v1/files/{job['training_file']}").json()
    assert job["validation_file"] == job["request"]["evaluation"]["file"] == training_file["held_out_file_id"]
    assert (training_file["line_count"], training_file["preparation"]["columns"]) == (24, "text,label")


def test_the_first_row_may_be_an_example(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("Where is my card,arrival\nNo money,withdrawal\nLost PIN,pin\n")
    page = open_page("/datasets")
    drop(page, tmp_path / "plain.csv")
    page.wait_for_url(re.compile("/datasets/convert/table-"))
    expect(page.get_by_text("No money", exact=True)).to_be_visible()
    first_row = page.locator(".t-chat").get_by_text("Where is my card", exact=True)
    expect(first_row).to_have_count(0)
    page.get_by_label("The first row has the names of the columns").uncheck()
    expect(page.get_by_label("User (question)")).to_have_value("#1")
    expect(first_row).to_be_visible()


def test_a_stored_dataset_is_split_into_two(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(tickets_jsonl(20))
    page = open_page("/datasets")
    drop(page, tmp_path / "chats.jsonl")
    page.wait_for_url(re.compile(r"/datasets/file-"))
    page.get_by_role("button", name="Keep rows for validation").click()
    page.wait_for_url(re.compile("/datasets/convert/table-"))
    page.get_by_label("Keep for validation (%)").fill("51")
    expect(page.get_by_text("Write a whole number from 1 to 50.")).to_be_visible()
    page.get_by_label("Keep for validation (%)").fill("15")
    expect(page.get_by_role("term").filter(has_text="For validation")).to_be_visible()
    page.get_by_role("button", name="Upload only").click()
    page.wait_for_url(re.compile(r"/datasets/file-"))
    expect(page.get_by_text("3 of 20 rows")).to_be_visible()
    page.get_by_role("link", name="The rows kept for validation").click()
    expect(page.get_by_role("heading", name="chats-held-out.jsonl")).to_be_visible()


def test_a_csv_of_ten_thousand_columns_can_be_converted(open_page: Open, tmp_path: Path) -> None:
    names = [f"column {number}" for number in range(10_000)]
    row = ",".join(f"={number}" for number in range(10_000))
    (tmp_path / "wide.csv").write_text("\n".join([",".join(names), *[row] * 11]))
    page = open_page("/datasets")
    drop(page, tmp_path / "wide.csv")
    page.wait_for_url(re.compile("/datasets/convert/table-"))
    expect(page.get_by_text("10,000 columns")).to_be_visible()
    page.get_by_label("User (question)").fill("missing")
    page.get_by_label("Assistant (answer)").fill("column 1")
    expect(page.get_by_text("There is no column with this name.")).to_be_visible()
    page.get_by_label("User (question)").fill("column 9000")
    expect(page.get_by_text("=9000", exact=True).first).to_be_visible()


def test_columns_with_unknown_names_are_not_guessed(open_page: Open, tmp_path: Path) -> None:
    """A table of two columns has a question and an answer; of more, any two would be wrong more often than right."""
    (tmp_path / "four.csv").write_text("Ticket no,Customer wrote,We answered,Agent\n" + "1,why,because,Ann\n" * 12)
    page = open_page("/datasets")
    drop(page, tmp_path / "four.csv")
    page.wait_for_url(re.compile("/datasets/convert/table-"))
    page.get_by_role("button", name="Upload only").click()
    expect(page.get_by_text("Choose a column.")).to_have_count(2)
    page.get_by_label("User (question)").select_option("Customer wrote")
    page.get_by_label("Assistant (answer)").select_option("We answered")
    expect(page.get_by_text("because", exact=True).first).to_be_visible()


@pytest.mark.parametrize(
    ("name", "content"), [("sheet.csv", b"\0\0binary"), ("sheet.xlsx", b"PK\x03\x04"), ("old.xls", b"\xd0\xcf")]
)
def test_a_file_that_is_no_table_says_what_to_save(open_page: Open, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    page = open_page("/datasets")
    drop(page, tmp_path / name)
    expect(page.get_by_role("alert")).to_contain_text(re.compile("Save it .*CSV"))


def test_a_refused_file_stays_in_view_beside_a_good_one(open_page: Open, tmp_path: Path) -> None:
    """Dropped together, the page stays; a good file that is dropped afterwards opens."""
    (tmp_path / "bad.jsonl").write_bytes(b"\x89PNG\r\n")
    for name in ("good", "later"):
        (tmp_path / f"{name}.jsonl").write_bytes(tickets_jsonl(12))
    page = open_page("/datasets")
    drop(page, tmp_path / "bad.jsonl", tmp_path / "good.jsonl")
    expect(page.get_by_role("alert")).to_contain_text(re.compile("(UTF-8|JSON).*Correct the file and drop it again."))
    expect(page.get_by_text("refused", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    expect(page.locator(".t-upload", has_text="good.jsonl").get_by_role("link", name="Open")).to_be_visible()
    drop(page, tmp_path / "later.jsonl")
    page.wait_for_url(re.compile(r"/datasets/file-"))
    expect(page.get_by_role("heading", name="later.jsonl")).to_be_visible()


def test_the_name_of_an_upload_shows_what_is_hidden_in_it(open_page: Open) -> None:
    page = open_page("/datasets")
    hostile = {"name": "\u202eevil\u200d.jsonl", "mimeType": "text/plain", "buffer": b"no JSON"}
    page.locator("input[type=file]").set_input_files(hostile)
    expect(page.locator(".t-upload bdi")).to_have_text("\\u202eevil\u200d.jsonl")


def test_each_of_several_files_is_sent_to_its_end(open_page: Open, tmp_path: Path) -> None:
    """The page stays when the first one is complete."""
    (tmp_path / "small.jsonl").write_bytes(tickets_jsonl(12))
    (tmp_path / "large.jsonl").write_bytes(tickets_jsonl(30_000))
    (tmp_path / "table.csv").write_text(CSV)
    page = open_page("/datasets")
    drop(page, *(tmp_path / name for name in ("small.jsonl", "large.jsonl", "table.csv")))
    for name, path in (("large.jsonl", "/datasets/file-"), ("small.jsonl", "/datasets/file-"), ("table.csv", "/conv")):
        link = page.locator(".t-upload", has_text=name).get_by_role("link", name="Open")
        expect(link).to_have_attribute("href", re.compile(path), timeout=60_000)
    page.locator(".t-upload", has_text="small.jsonl").get_by_role("link", name="Open").click()
    expect(page.get_by_text("Valid", exact=True)).to_be_visible()


def test_an_upload_waits_for_the_connection_for_as_long_as_it_takes(open_page: Open, tmp_path: Path) -> None:
    """More failures than a server's errors are repeated for."""
    (tmp_path / "small.jsonl").write_bytes(tickets_jsonl(12))
    page = open_page("/datasets")
    page.clock.install()
    page.route("**/uploads", lambda route: route.abort())
    drop(page, tmp_path / "small.jsonl")
    for _ in range(8):
        expect(page.get_by_text("The connection was lost; it continues by itself.")).to_be_visible()
        with page.expect_event("requestfailed"):  # not only sent: its route must be handled before `unroute`
            page.clock.fast_forward(10_000)
    page.unroute("**/uploads")
    expect(page.get_by_text("The connection was lost; it continues by itself.")).to_be_visible()
    page.clock.fast_forward(10_000)
    page.wait_for_url(re.compile(r"/datasets/file-"))


@pytest.mark.slow
def test_a_file_of_two_gigabytes_is_streamed_in_bounded_memory_and_can_be_cancelled(
    open_page: Open, web_url: str, world: World, tmp_path: Path
) -> None:
    with (tmp_path / "huge.jsonl").open("wb") as sparse:
        sparse.truncate(2_000_000_000)
    page = open_page("/datasets")
    page.context.unroute_all()  # the check of hosts would pass every piece through the test
    contents: list[str] = []
    page.on("request", lambda request: contents.extend(re.findall(r"/uploads/(upload_[^/]+)/content", request.url)))
    dashboard_bytes, page_bytes = memory_bytes(web_url), page.evaluate(HEAP_BYTES)
    drop(page, tmp_path / "huge.jsonl")
    for percent in (4, 8, 12):  # of 2 GB: 80 to 240 MB
        bar = "document.querySelector('.t-upload [role=progressbar]')"
        page.wait_for_function(f"{bar}.ariaValueNow >= {percent}", timeout=90_000)
        assert memory_bytes(web_url) - dashboard_bytes < 64 * MEGABYTE
        assert page.evaluate(HEAP_BYTES) - page_bytes < 64 * MEGABYTE
    expect(page.locator(".t-upload")).to_contain_text(re.compile(r"\d\d\d\.\d MB of 2000\.0 MB"))
    page.get_by_role("button", name="Cancel the upload of huge.jsonl").click()
    expect(page.locator(".t-upload")).to_contain_text("cancelled")
    with httpx2.Client(headers={"Authorization": f"Bearer {world.admin_key}"}, trust_env=False) as api:
        url = f"{world.api_url}/v1/uploads/{contents[0]}"
        until(lambda: api.get(url).json()["status"] == "cancelled", "the upload is cancelled")


def memory_bytes(web_url: str) -> int:
    """The resident memory of the dashboard's process."""
    port = urlsplit(web_url).port
    found = [one for one in psutil.Process().children(recursive=True) if "app.web" in one.cmdline()]
    (process,) = (one for one in found if one.environ().get("TUNERY_WEB_PORT") == str(port))
    return int(process.memory_info().rss)


def test_an_upload_continues_after_its_page_was_closed(open_page: Open, tmp_path: Path) -> None:
    """The second piece fails until the page is closed; the same file, dropped again, begins with the second piece."""
    file = tmp_path / "half.jsonl"
    file.write_bytes(tickets_jsonl(30_000, seed=3))
    page = open_page("/datasets")
    page.route("**/uploads/*/content?offset=4194304", lambda route: route.abort())
    drop(page, file)
    expect(page.get_by_text("The connection was lost; it continues by itself.")).to_be_visible()
    again = page.context.new_page()
    page.close()
    offsets: list[str] = []
    again.on("request", lambda request: offsets.extend(re.findall(r"offset=(\d+)", request.url)))
    again.goto(page.url)
    drop(again, file)
    again.wait_for_url(re.compile(r"/datasets/file-"), timeout=60_000)
    assert offsets[0] == "4194304"


def test_an_upload_of_a_table_is_that_of_its_session_until_it_is_cancelled(web_url: str, world: World) -> None:
    with signed_in(web_url, world.admin_key) as owner, signed_in(web_url, world.member_key) as other:
        table_id = owner.post("/uploads", json={"filename": "a.csv", "bytes": 3}).json()["id"]
        assert owner.get(f"/uploads/{table_id}").status_code == 200
        assert other.get(f"/uploads/{table_id}").status_code == 400
        other.cookies.clear()
        assert other.get(f"/uploads/{table_id}").status_code == 401
        assert owner.delete(f"/uploads/{table_id}").status_code == 200
        assert owner.get(f"/uploads/{table_id}").status_code == 400
