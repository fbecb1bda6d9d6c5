"""Addresses of houses, in English above all."""

from __future__ import annotations

from tutelage.privacy.pii.lists import own
from tutelage.privacy.pii.pattern import NAMES, PARTICLES, Detector, Found, Pattern
from tutelage.privacy.pii.words import known, tokens

_STREET = (
    r"(?i:street|str|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|place|pl|square|sq|terrace|way|"
    r"parkway|pkwy|highway|hwy|circle|cir|close|crescent|grove|gardens|mews|row|hill|walk|alley|quay)"
)
_RARER_STREET = rf"(?=\p{{Lu}})(?i:(?:{'|'.join(own('street_types'))})s?)"
# United States Postal Service, Publication 28, appendix B; the territories and armed forces with a ZIP code only
_STATE = (
    "(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|"
    "W[AIVY])"
)
_ZIP = r"\d{5}(?:-\d{4})?"
_TERRITORY = rf"(?:A[AEPS]|FM|GU|M[HP]|P[RW]|VI)\s+{_ZIP}"
_POSTCODE = r"[A-Z]{1,2}\d[A-Z\d]?[ ]\d[A-Z]{2}"
_ROOM = r"(?:,?\s+(?i:apt|apartment|suite|ste|unit|floor|fl|room|\#)\.?\s*\#?\w+)?"
_TOWN = (
    rf"(?:\s[NSEW]{{1,2}}\b)?{_ROOM}"
    rf"(?:,?\s+{NAMES},?\s+(?:{_STATE}\b(?:\s+{_ZIP})?|{_TERRITORY}|{_POSTCODE})\b)?"
)
_FLAT = r"(?i:flat|unit|apt\.?|studio|suite|level)\s\w{1,4}"
_NUMBER = rf"\b(?:(?:{_FLAT},?\s)?(?:\d{{1,4}}-)?\d{{1,6}}(?:/\d{{1,4}})?[A-Za-z]?,?\s|{_FLAT},?\s)"
_ROMANCE = (
    r"(?i:acceso|alameda|avda\.|avenida|borgo|calle|callej[óo]n|camino|carrera|ca[ñn]ada|contrada|corso|cuesta|glorieta|"
    r"incrocio|largo|pasadizo|pasaje|paseo|piazza|piazzale|plaza|rambla|ronda|rotonda|rua|strada|stretto|"
    r"travessa|urbanizaci[óo]n|via|viale|vial|vicolo)"
)


def _named_street(found: Found) -> bool:
    """After somebody, or in a foreign language."""
    return any(token.is_in(known().people) or token.unknown for token in tokens(found["name"]))


STREET_ADDRESS: tuple[Detector, ...] = (
    # 221B Baker Street, Flat 2, 14 Acacia Road, 12 East 42nd St.
    Pattern(rf"{_NUMBER}(?:(?:\p{{Lu}}[\p{{L}}'’.-]*|\d+(?:st|nd|rd|th))\s){{1,4}}{_STREET}\b\.?{_TOWN}", 0.6),
    # named after somebody at least; not "2002 Silicon Valley"
    Pattern(rf"(?!(?:19|20)\d\d\b){_NUMBER}(?P<name>(?:\p{{Lu}}[\p{{L}}'’.-]*\s){{1,3}}){_RARER_STREET}\b{_TOWN}",
            0.6, _named_street),
    # 12 main street; P.O. Box 9; PSC 12, Box 3, APO AE 09012; a town with its state and code; a British postcode
    Pattern(rf"\b\d{{1,6}}[ ](?:[a-z]+[ ]){{1,2}}(?:street|avenue|road|boulevard|lane|ave|blvd)\b{_TOWN}", 0.5),
    Pattern(rf"\b(?i:p\.?\s?o\.?\s?box|post office box)\s\#?\d+{_TOWN}", 0.6),
    Pattern(rf"\b(?:(?i:psc|cmr|unit|box)\s\d{{1,6}},?\s|USN?[SV]\s\p{{Lu}}\p{{L}}{{1,20}},?\s){{0,2}}"
            rf"(?:APO|DPO|FPO),?\s+A[AEP]\s+{_ZIP}\b", 0.6),
    Pattern(rf"\b{NAMES},[ ](?:{_STATE}[ ]{_ZIP}|{_TERRITORY})\b", 0.6),
    Pattern(rf"\b{_POSTCODE}\b", 0.5),
    # Hauptstraße 7, Kerkweg 12; not "Offering 3"
    Pattern(r"\b(?P<name>\p{Lu}[\p{L}-]{0,40}(?i:stra(?:ß|ss)e|str\.|weg|platz|allee|gasse|ring|damm|ufer|straat|"
            r"laan|plein|gracht|kade|pad|dreef|baan|hof|boulevard|steeg|singel))\s\d{1,4}(?:[-/]\d{1,4}|[a-z])?\b",
            0.6, _named_street),
    # 12, rue de la Paix, or without a number; Calle Mayor 7; Via Roma, 12
    Pattern(r"\b(?:\d{1,4},?\s)?(?i:rue|avenue|boulevard|chemin|impasse|all[ée]e|quai)\s"
            rf"(?P<name>(?:{PARTICLES})?{NAMES})", 0.6, lambda found: found[0][0].isdigit() or _named_street(found)),
    Pattern(rf"\b(?:{_ROMANCE}|C\.)\s(?:{PARTICLES})?{NAMES},?\s\d{{1,4}}"
            r"(?:,?\s(?i:piso|puerta|apt\.|piano|appartamento|interno)\s\d+)?\b", 0.6),
)  # fmt: skip
