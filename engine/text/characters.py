"""Characters beyond ASCII that every version of Unicode's tables takes for the same: parts of a pattern's [...].

A tokenizer's own tables are older or newer than Python's; what stands here is the same in both, and stays as it is
where a text is composed (NFC). Of scripts whose letters carry marks nothing stands here.
"""

LETTERS = (
    "\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0180-\u02af"  # Latin; \u017f is an s to some
    "\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u0400-\u0481\u048a-\u052f"  # Greek, Cyrillic
    "\u05d0-\u05ea\u0620-\u064a\u0671-\u06d3"  # Hebrew, Arabic
    "\u3005\u3006\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u4e00-\u9fd5\uac00-\ud7a3"  # East Asia
)
PUNCTUATION = (
    "\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u2010-\u2027\u2030-\u2043\u3001-\u3003\u3008-\u3011\u3014-\u301b\u30fb"
    "\uff01-\uff03\uff05-\uff0a\uff0c-\uff0f\uff1a\uff1b\uff1f\uff20"
)
SYMBOLS = (
    "\u00a2-\u00a6\u00a8\u00a9\u00ac\u00ae-\u00b1\u00b4\u00b8\u00d7\u00f7\u20a0-\u20bd\u2190-\u22ff"
    "\u2500-\u2580\u2582-\u26ff\u2701-\u2767\u2794-\u27bf"
    "\u200d\ufe0f\U0001f300-\U0001f5ff\U0001f600-\U0001f64f\U0001f680-\U0001f6c5"  # emoji, and what joins them
)
"""Neither letters, digits, spaces nor punctuation."""
