"""The regular expressions by which text is cut into pieces before anything is merged."""

BPE_PATTERN = (  # GPT-4's: words with one leading non-letter, numbers of up to three digits, punctuation, whitespace
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\u200c\u200d"
r"""What words are made of: Rust's \w written out, for Python's re, its regex and Oniguruma each mean another by \w."""
WORD_PATTERN = rf" ?[{WORD}]+| ?[^{WORD}\s]+|\s+"
