"""E-mail addresses, addresses of pages and hosts, and addresses of machines."""

from __future__ import annotations

import ipaddress
from functools import cache
from typing import TYPE_CHECKING

from tutelage.privacy.pii.pattern import Detector, Found, Pattern, compiled, said_before

if TYPE_CHECKING:
    from tldextract import TLDExtract

_LOCAL = r"\w.+\-!#$%&'*/=?^`{|}~"  # RFC 5322, atext
_AT = r"(?:\s?[(\[{<]\s?(?i:at)\s?[)\]}>]\s?|\s@\s)"
_DOT = r"(?:\.|\s?[(\[{<]\s?(?i:dot)\s?[)\]}>]\s?|\s(?i:dot)\s)"
_LABEL = r"[\p{L}\p{N}](?:[\p{L}\p{N}-]{0,61}[\p{L}\p{N}])?"
_PATH = r"[^\s<>\"']*[^\s<>\"'.,;:!?)\]}]"
_OCTET = r"(?:25[0-5]|2[0-4]\d|[01]?\d?\d)"
_POINT = r"(?:\.|\[\.\]|\(\.\))"  # in brackets where an address must not become a link
_BRACKETS = str.maketrans("", "", "[]()")
_GROUPS = r"(?:[\da-f]{0,4}:){2,7}"

# Endings of files; as suffixes of a domain of two labels they are rare in mail.
_FILE_ENDINGS = frozenset(("md", "mov", "pm", "ps", "py", "rs", "sh", "so", "zip"))
# RFC 2606 and 6762, RFC 7686, and what companies use within their walls.
_PRIVATE_SUFFIXES = frozenset(("corp", "example", "internal", "intranet", "lan", "local", "localdomain", "onion"))
_NO_HOSTS = frozenset(("ado.net", "asp.net", "vb.net"))
_ARTICLES = frozenset(("a", "an", "each", "every", "my", "one", "our", "that", "the", "this", "your"))
_VERSIONED = r"(?i)\b(?:v|ver|versions?|releases?|build|revision|section|chapter|clause|article)[.:]?\s{0,2}\Z"


def _host(found: Found) -> bool:
    """A host without a scheme: its suffix exists, in one case ("the end.So" is none), and it looks like no file."""
    host, alone = found["host"].translate(_BRACKETS), found.end() == found.end("host")
    suffix = host.rpartition(".")[2]
    if host.lower() in _NO_HOSTS or not (suffix.islower() or suffix.isupper()):
        return False
    if suffix.lower() in _FILE_ENDINGS and host.count(".") == 1 and alone:
        return False
    return suffix.lower() in _PRIVATE_SUFFIXES or bool(_suffixes()(host.lower()).suffix)


def _spelled_host(found: Found) -> bool:
    """ "at the dot in the map" spells none."""
    labels = [label.lower() for label in compiled(r"[\w-]+").findall(found["host"])]
    return labels[0] not in _ARTICLES and bool(_suffixes()(f"x.{labels[-1]}").suffix)


def _ipv4(found: Found) -> bool:
    """ "version 1.2.3.4" is none."""
    return not said_before(_VERSIONED, found.string, found.start())


def _ipv6(found: Found) -> bool:
    """ "dead::beef" in code and a window of "12::30" are none, though they might be."""
    groups = [group for group in found[0].partition("%")[0].split(":") if group]
    if not any(c.isdigit() for c in found[0]) or (len(groups) < 3 and all(len(group) < 3 for group in groups)):
        return False
    try:
        ipaddress.IPv6Address(found[0])
    except ValueError:
        return False
    return True


@cache
def _suffixes() -> TLDExtract:
    """Top-level domains, from the list that the package ships; its default would be fetched."""
    import tldextract

    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


EMAIL_ADDRESS: tuple[Detector, ...] = (
    # any local part from its first letter or digit on; a host, if need be with "(dot)", or an address in brackets
    Pattern(rf"(?<![{_LOCAL}])[.+\-!#$%&'*/=?^`{{|}}~]*+\K\w[{_LOCAL}]*+@"
            rf"(?:\[(?i:[\da-f.:ipv]+)\]|\w[\w-]*+(?:{_DOT}\w[\w-]*+)*+)", 0.95),
    # "joe at home"@example.com
    Pattern(r"\"[^\"@]{1,64}+\"@\w[\w-]*+(?:\.\w[\w-]*+)*+", 0.95),
    # joe(dot)x@example(dot)com, joe (at) example (dot) com, joe [at] example.com, joe @ example.com
    Pattern(rf"(?<![\w.+-])[\w+-]++(?:{_DOT}[\w+-]++){{0,3}}(?:@|{_AT})"
            rf"(?P<host>[\w-]++(?:{_DOT}[\w-]++){{1,5}})", 0.6, _spelled_host),
    # joe at example dot com: with a dot in words, else any sentence would do
    Pattern(rf"(?<![\w.+-])[\w+-]++(?:{_DOT}[\w+-]++){{0,3}}\s(?i:at)\s"
            rf"(?P<host>[\w-]++(?:{_DOT}[\w-]++){{0,4}}\s(?i:dot)\s[\w-]++)", 0.6, _spelled_host),
    # joe_at_example.com, joe-at-example.com, joe AT example.com
    Pattern(r"(?<![\w.+-])[\w.+-]+?(?:(?i:_at_|-at-)|[ ]AT[ ])(?P<host>[a-zA-Z\d-]++(?:\.[a-zA-Z\d-]++)++)",
            0.6, _spelled_host),
)  # fmt: skip

URL: tuple[Detector, ...] = (
    # any scheme, hxxp as well, and JSON's "https:\\/\\/"
    Pattern(rf"(?i)\b[a-z][a-z\d+.-]{{1,15}}:\\?/\\?/{_PATH}", 0.9),
    Pattern(rf"(?i)\bwww\d?\.{_PATH}", 0.9),
    # a bare host; before a bracket it is a call of a method
    Pattern(rf"(?<![\p{{L}}\p{{N}}@._-])(?P<host>{_LABEL}(?:{_POINT}{_LABEL})*{_POINT}\p{{L}}{{2,24}})(?::\d{{1,5}})?"
            rf"(?:[/?#](?:{_PATH})?)?(?![\p{{L}}\p{{N}}@(-])", 0.6, _host),
    # a machine with a port or a path
    Pattern(rf"(?i)(?<![\w@./-])(?:localhost:\d{{2,5}}(?:/{_PATH})?|(?:{_OCTET}\.){{3}}{_OCTET}(?::\d{{1,5}})?/\p{{L}}{_PATH})",
            0.6),
)  # fmt: skip

IP_ADDRESS: tuple[Detector, ...] = (
    # a longer row of numbers is the name of an object in a directory
    Pattern(rf"(?<![^\W_]|\d\.)(?:{_OCTET}{_POINT}){{3}}{_OCTET}(?![^\W_]|\.\d)(?:/\d{{1,2}}\b)?", 0.9, _ipv4),
    Pattern(rf"(?i)(?:(?<![\w:])|\bipv6:\K){_GROUPS}(?:(?:{_OCTET}\.){{3}}{_OCTET}|[\da-f]{{1,4}}|(?<=::))"
            r"(?:%\w+)?(?!\w|:[\w:])", 0.9, _ipv6),
)  # fmt: skip
