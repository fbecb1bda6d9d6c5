"""What nearly every small run loads first. Imported by the server of drive.py, it is loaded once for all that fork."""

from tutelage.privacy.pii import words

words.known()
