"""Mail parsing: charsets, MIME, HTML, boilerplate, broken input, and the corpus itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tutelage.configs.errors import UserError
from tutelage.privacy.mail import FOLDERS, load_mails, mail_text


def text_of(raw: str | bytes, max_chars: int = 400) -> str:
    return mail_text(raw.encode() if isinstance(raw, str) else raw, max_chars)


def test_subject_and_body_without_the_other_headers() -> None:
    raw = "From a@b.c Thu Aug 22\nReceived: from x\nFrom: a@b.c\nSubject: Re: lunch\n\nAt   noon,\n\nas always.\n"
    assert text_of(raw) == "Re: lunch\nAt noon, as always."


def test_a_mail_without_subject_is_its_body() -> None:
    assert text_of("From: a@b.c\n\nHello there.\n") == "Hello there."


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("=?iso-8859-1?Q?caf=E9?= time", "café time"),
        ("=?utf-8?B?w7xiZXI=?=", "über"),
        ("=?no-such-charset?Q?caf=C3=A9?=", "café"),
        ("=?utf-8?B?x?=", "=?utf-8?B?x?="),
    ],
)
def test_encoded_subjects(subject: str, expected: str) -> None:
    assert text_of(f"Subject: {subject}\n\nbody\n") == f"{expected}\nbody"


def test_raw_eight_bit_subject_and_body_fall_back_to_windows_1252() -> None:
    assert text_of("Subject: café\n\n“naïve”\n".encode("windows-1252")) == "café\n“naïve”"


def test_declared_charset_and_transfer_encoding() -> None:
    head = "Subject: s\nContent-Type: text/plain; charset={}\nContent-Transfer-Encoding: {}\n\n"
    assert text_of(head.format("koi8-r", "8bit").encode() + "привет".encode("koi8-r")) == "s\nпривет"
    assert text_of(head.format("utf-8", "quoted-printable") + "gr=C3=BC=\nn") == "s\ngrün"
    assert text_of(head.format("x-unknown", "8bit").encode() + "grün".encode()) == "s\ngrün"


def multipart(*parts: tuple[str, str]) -> str:
    blocks = "".join(f"--B\nContent-Type: {kind}\n\n{content}\n" for kind, content in parts)
    return f'Subject: s\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="B"\n\n{blocks}--B--\n'


def test_plain_text_is_preferred_to_html_and_attachments_are_left_out() -> None:
    attached = "text/plain\nContent-Disposition: attachment; filename=a.txt"
    raw = multipart(("text/html", "<p>web</p>"), ("text/plain", "words"), (attached, "secret"), ("image/gif", "R0lG"))
    assert text_of(raw) == "s\nwords"
    assert text_of(multipart(("text/plain", "  "), ("text/html", "<p>web</p>"))) == "s\nweb"


def test_html_becomes_text() -> None:
    page = (
        "<html><head><title>T</title><style>p {color: red}</style><script>x = 1</script></head><body>"
        "<p>V<!-- x -->i<b>ag</b>ra &amp; co</p>one<br>two<td>three</td></body></html>"
    )
    assert text_of(f"Subject: s\nContent-Type: text/html\n\n{page}") == "s\nViagra & co one two three"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("On Monday, Ann Lee wrote:\n> old words\n> more\n\nNew words.\n", "New words."),
        ("Ann Lee wrote:\n\nAL> old words\nNew words.\n", "New words."),
        ("New words.\n-- \nAnn Lee\nACME\n", "New words."),
        ("New words.\n_______________________________\nIlug mailing list\nIlug@x.ie\n", "New words."),
        ("New words.\nhttp://x.com/mailman/listinfo/fork\n", "New words."),
        ("> only a quotation\n", "> only a quotation"),
        ("-- \nonly a signature\n", "-- only a signature"),
        ("Offer\n____________________________\nBuy now\n", "Offer ____________________________ Buy now"),
        ("She wrote:\nnothing.\n", "She wrote: nothing."),
    ],
)
def test_boilerplate_goes_unless_nothing_would_be_left(body: str, expected: str) -> None:
    assert text_of(f"Subject: s\n\n{body}") == f"s\n{expected}"


def test_control_characters_go() -> None:
    assert text_of("Subject: s\n\na\x00b\u200bc\x07 d\n") == "s\nabc d"


FRAGMENTS = [
    "Subject: =?x?q?",
    "Content-Type: multipart/mixed; boundary=",
    "Content-Type: text/html; charset*=\xff''%",
    "Content-Type: text/plain; charset=hex",
    'Content-Type: text/plain; charset="ro\x00t13"',
    "Content-Transfer-Encoding: base64",
    "Content-Disposition: ;;=",
    "--B",
    "",
    "<a href=",
    "=?utf-8?B?/?=",
    "<![x",
    "\r",
    "\xff\xfe",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(FRAGMENTS) | st.text(max_size=20),
        max_size=12,
    )
)
@example(["Content-Type: text/html", "", "<![x", "y"])
def test_no_mail_raises(lines: list[str]) -> None:
    text = mail_text("\n".join(lines).encode("latin-1", "replace"), 400)
    text.encode("utf-8")
    assert text == text.strip()


def package(root: Path, mails: dict[str, list[bytes]]) -> Path:
    for name in FOLDERS:
        folder = root / "data" / name
        folder.mkdir(parents=True)
        for number, raw in enumerate(mails.get(name, [f"Subject: {name}\n\nbody {name}\n".encode()]), start=1):
            (folder / f"{number:05}.0123abcd.txt").write_bytes(raw)
            (folder / f"{number:05}.0123abcd.json").write_text("{}")
    return root


def test_load_mails_labels_by_folder_and_drops_repeats_and_empty_mails(tmp_path: Path) -> None:
    twin = b"Subject: Hi\n\nSame  words\n"
    root = package(
        tmp_path, {"easy-ham-1": [twin, b"Subject: HI\n\nsame words\n", b"Subject: x\n\n \n"], "spam-1": [twin]}
    )
    records = load_mails(root, 400)
    assert [(r.id, r.completion) for r in records] == [
        ("easy-ham-1/00001", "ham"),
        ("easy-ham-2/00001", "ham"),
        ("hard-ham-1/00001", "ham"),
        ("spam-1/00001", "spam"),
        ("spam-2/00001", "spam"),
    ]
    assert records[0].text == "Hi\nSame words"


def test_load_mails_cuts(tmp_path: Path) -> None:
    root = package(tmp_path, {"easy-ham-1": [b"Subject: s\n\n" + b"word " * 200]})
    assert load_mails(root, 24)[0].text == "s\nword word word word"


def test_a_package_without_mails_is_named(tmp_path: Path) -> None:
    root = package(tmp_path, {"spam-2": []})
    with pytest.raises(UserError, match="spam-2") as caught:
        load_mails(root, 400)
    assert caught.value.remedy


def test_the_corpus(mail_package: Path) -> None:
    records = load_mails(mail_package, 400)
    counts = Counter(record.completion for record in records)
    assert 5_400 < len(records) < 5_900
    assert 0.65 < counts["ham"] / len(records) < 0.78
    assert len({record.id for record in records}) == len(records)
    assert all(0 < len(record.text) <= 400 for record in records)
    assert not any("Received: from" in record.text.partition("\n")[0] for record in records)
    # nearly all of it is English in Latin letters: a charset gone wrong would show
    assert sum("\ufffd" in record.text for record in records) < 30
    assert sum(record.text.isascii() for record in records) > 0.8 * len(records)
