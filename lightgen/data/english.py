"""Whether a text is English, by a rule of thumb."""

import unicodedata

from lightgen.data.text_duplicates import words_of

_ENGLISH_WORDS = (
    "a an the of in on at with and or is are was were to from for by this that it its his her their there "
    "while into over under near next as has have be who which two three"
)
# Words as frequent in their language, and none of them English.
_FOREIGN_WORDS = (
    "der das und mit ein eine einer einem einen auf ist von im dem zu für nicht le la les des une un "
    "et dans avec sur est du au aux pour par el los las una con en del por que se il lo gli di della nel "
    "che sono om os uma com na da em para een het op voor ett och på med som är av og på til ve bir bu ile "
    "jest się"
)
_ENGLISH, _FOREIGN = frozenset(_ENGLISH_WORDS.split()), frozenset(_FOREIGN_WORDS.split())


def is_english(text: str) -> bool:
    """Whether a text may well be English, by its letters and the commonest words; see CleaningConfig."""
    letters = [] if text.isascii() else [each for each in text if each.isalpha()]
    if sum(unicodedata.normalize("NFKD", each)[0].isascii() for each in letters) < 0.9 * len(letters):
        return False
    english = sum(word in _ENGLISH for word in words_of(text))
    # as written: names such as Los Angeles hold them
    foreign = sum(word in _FOREIGN for word in text.split())
    return foreign <= english or (foreign == 1 and len(text.split()) < 4)
