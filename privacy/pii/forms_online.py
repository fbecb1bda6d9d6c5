"""Forms of addresses, for the scanner's test: of people by e-mail, of pages and hosts, of machines."""

from __future__ import annotations

import ipaddress
from random import Random

from tutelage.privacy.pii.forms import Form, Make, filled, v6


def _spelled(at: str, dot: str) -> Make:
    """An address whose signs are written otherwise."""
    return filled("{user}@{domain}", lambda text: text.replace(".", dot).replace("@", at))


def _v6_network(rng: Random) -> str:
    """One that ends in zeros."""
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(v6(rng, 0))) >> 80 << 80))


def _v6_unabbreviated(rng: Random) -> str:
    """One whose zeros are written out."""
    return ":".join(f"{int(group, 16):x}" for group in ipaddress.IPv6Address(v6(rng, 2)).exploded.split(":"))


EMAIL_ADDRESS: tuple[Form, ...] = (
    Form("plain", filled("{user}@{domain}")),
    Form("plus tag", filled("{user}+{tag}@{domain}")),
    Form("subdomain", filled("{user}@mail.eu-west.{domain}")),
    Form("upper case", filled("{user}@{domain}", str.upper)),
    Form("title case", filled("{user}@{domain}", str.title)),
    Form("punctuated", filled("{user}{sign}a@{domain}")),
    Form("quoted local part", filled('"{user} at home"@{domain}')),
    Form("domain literal", filled("{user}@[{v4}]")),
    Form("one letter", filled("{initial}@{domain}", str.lower)),
    Form("international domain", filled("{user}@bücher-{domain}")),
    Form("international local part", filled("zoë.{user}@{domain}")),
    Form("punycode domain", filled("{user}@xn--bcher-kva.{domain}")),
    Form("mailto", filled("{user}@{domain}"), "link"),
    Form("single-label host", filled("{user}@{name}")),
    Form("digits only", filled("#########@{domain}")),
    Form("underscored", filled("_{user}_@{domain}")),
    Form("many labels", filled("{user}@a.b-c.d2.{domain}"), fresh=True),
    Form("IPv6 literal", filled("{user}@[IPv6:{v6}]"), fresh=True),
    Form("percent", filled("{user}%mail.local@{domain}"), fresh=True),
    Form("bounce", filled("bounce-#####-{user}=x.org@{domain}"), fresh=True),
    Form("new suffix", filled("{user}@{name}.technology"), fresh=True),
    Form("hyphens", filled("{user}-x-y@{domain}"), fresh=True),
    Form("at and dot", _spelled(" at ", " dot "), stratum="obfuscated"),
    Form("(at) and (dot)", _spelled(" (at) ", " (dot) "), stratum="obfuscated"),
    Form("[at]", _spelled(" [at] ", "."), stratum="obfuscated"),
    Form("AT and DOT", _spelled(" AT ", " DOT "), stratum="obfuscated"),
    Form("{at}, no spaces", _spelled("{at}", "."), stratum="obfuscated"),
    Form("spaced at sign", _spelled(" @ ", "."), stratum="obfuscated"),
    Form("(dot) only", _spelled("@", "(dot)"), stratum="obfuscated"),
    Form("_at_", _spelled("_at_", "."), stratum="obfuscated"),
    Form("AT in capitals", _spelled(" AT ", "."), stratum="obfuscated", fresh=True),
    Form("[at] and [dot]", _spelled("[at]", "[dot]"), stratum="obfuscated", fresh=True),
    Form("<at> and <dot>", _spelled(" <at> ", " <dot> "), stratum="obfuscated", fresh=True),
    Form("-at-", _spelled("-at-", "."), stratum="obfuscated", fresh=True),
)

URL: tuple[Form, ...] = (
    Form("https", filled("https://{domain}/")),
    Form("http with path", filled("http://www.{domain}/{word}/index.html")),
    Form("no path", filled("http://{domain}")),
    Form("www", filled("www.{domain}/{word}")),
    Form("bare host", filled("{domain}")),
    Form("bare host with path", filled("{domain}/{word}/###")),
    Form("bare subdomain", filled("{word}.{domain}")),
    Form("port", filled("http://{domain}:{port}/{word}")),
    Form("bare host with port", filled("{domain}:{port}")),
    Form("query", filled("https://{domain}/?id=######&u={word}%20a")),
    Form("bare host with query", filled("{domain}?q={word}+##")),
    Form("fragment", filled("https://{domain}/a_b/c~d/{hash}{word}")),
    Form("parentheses in the path", filled("https://en.{domain}/wiki/{word}_(x)")),
    Form("user and password", filled("ftp://{word}:s3cret@{domain}/pub")),
    Form("IPv4 host", filled("http://{v4}/{word}")),
    Form("IPv4 host and port", filled("http://{v4}:8080/{word}?x=1")),
    Form("IPv6 host", filled("http://[{v6}]:8080/{word}")),
    Form("punycode", filled("http://xn--mnchen-3ya.{domain}/")),
    Form("international host", filled("https://münchen.{domain}/straße")),
    Form("international bare host", filled("café-{domain}")),
    Form("upper case", filled("http://www.{domain}/{word}.htm", str.upper)),
    Form("intranet", filled("http://{word}/wiki")),
    Form("localhost", filled("http://localhost:{port}/{word}")),
    Form("defanged", filled("hxxp://{domain}/{word}")),
    Form("defanged host", filled("{word}[.]{domain}")),
    Form("IPv4 host with path, bare", filled("{v4}/{word}/")),
    Form("localhost, bare", filled("localhost:{port}/{word}")),
    Form("other scheme", filled("{scheme}://{word}.{domain}/x")),
    Form("deep link", filled("https://{domain}/r/{word}/{hex}{hex}?t=a-b_c.d,e;f=1")),
    Form("user", filled("http://{word}@{domain}/"), fresh=True),
    Form("short link", filled("https://t.co/{initial}####X"), fresh=True),
    Form("ftp host", filled("ftp.{domain}"), fresh=True),
    Form("www2", filled("www2.{domain}"), fresh=True),
    Form("git+ssh", filled("git+ssh://git@{domain}/{word}.git"), fresh=True),
    Form("file", filled("file:///home/{word}/notes.txt"), fresh=True),
    Form("bucket", filled("s3://{word}-###/a/b"), fresh=True),
    Form("escaped", filled(r"https:\/\/{domain}\/{word}"), fresh=True),
    Form("bare host, everything", filled("{domain}:8443/{word}?a=##&b{hash}c"), fresh=True),
    Form("percent-encoded", filled("http://{domain}/%E4%BD%A0%20x"), fresh=True),
    Form("title case host", filled("{initial}{name}.com"), fresh=True),
)

IP_ADDRESS: tuple[Form, ...] = (
    Form("IPv4", filled("{v4}")),
    Form("IPv4 and more", filled("{v4}"), "part"),
    Form("IPv4 range", lambda rng, split: f"{filled('{v4}')(rng, split)}-{filled('{v4}')(rng, split)}"),
    Form("IPv6 in full", lambda rng, _: ipaddress.IPv6Address(v6(rng, 0)).exploded),
    Form("IPv6", lambda rng, _: v6(rng, 0)),
    Form("IPv6 with ::", lambda rng, _: v6(rng)),
    Form("IPv6 upper case", lambda rng, _: v6(rng).upper()),
    Form("IPv6 ending in ::", lambda rng, _: _v6_network(rng)),
    Form("IPv6 and more", lambda rng, _: v6(rng), "part6"),
    Form("link-local with zone", lambda rng, _: f"fe80::{rng.getrandbits(16):x}:{rng.getrandbits(16):x}%eth0"),
    Form("IPv4-mapped", filled("::ffff:{v4}")),
    Form("IPv6 zeros kept", lambda rng, _: _v6_unabbreviated(rng)),
    Form("IPv4 padded", filled("{v4}", lambda v4: ".".join(part.zfill(3) for part in v4.split("."))), fresh=True),
    Form("IPv4 defanged", filled("{v4}", lambda v4: v4.replace(".", "[.]")), fresh=True),
    Form("IPv4 and netmask", filled("{v4} 255.255.255.0"), fresh=True),
    Form("IPv4 in IPv6", filled("64:ff9b::{v4}"), fresh=True),
    Form("IPv6 beginning in ::", filled("::1###:a#f#"), fresh=True),
    Form("IPv6 of digits", filled("2001:4860:4860::8###"), fresh=True),
)
