"""Strings on which tokenizers that should be one and the same have been found to differ."""

import random
import unicodedata

HINDI = "यह एक छोटी सी कहानी है। राजा और रानी साथ रहते थे।"
FIXED = [
    "", " ", "\n", "\t", "\r\n", "a", " a", "a ", "hello !", "hello , world .", "I 'm",
    "don't DON'T Don'T we'll WE'LL", "'s", "x'd y'RE", "<|endoftext|>", "a<|endoftext|>b",
    " <|endoftext|> <|im_start|>user\n", "<s>a</s>", "<unk>", "▁a▁ ▁", "<0x0A>", "Ġa", " ReLU²",
    "ReLU² is ½ good", "H₂O", "Ⅷ ⅷ ①", "1234567 12 3.14159 1,000", "٣٤٥ १२३", "x²³¹", "naïve café",
    "e\u0301 n\u0303", "\u0301", " \u0301a", "a\u200d", "\u200c\u200d", "👩‍👩‍👧‍👦 👍🏽 🇳🇴", HINDI,
    f" {HINDI}\n\n{HINDI}", "東京は日本の首都です。", " 北京 ", "한국어 문장", "ไทย ภาษาไทย", "עברית ‏", "العربية ،",
    "ΣΑΣ σας ς",
    "ǅ ß ẞ ſ 'ſ", "ﬁ ﬅ", "İ ı", "snake_case __init__ ‿", "def f(x):\n    return x  # ok\n\n\n",
    "\tif a:\r\n\t\tb\r\n", "a\u00a0b", "a\u2003b", "a\u3000b", "a\u2028b", "\u00a0 \u00a0", "a\x00b\x07",
    "\ufeffa", "\ufffd", "\ufffd\ufffd a", "[]{}()<>", "!!!??...", " -- ---", "http://a.b/c?d=e&f#g",
    "$100 50% #1 @you", "\\n \\\\", "\"'`´", "…—–", "a\x85b", "a\x0b\x0cb", "x\n \n  \n y", "  \n", " \n \n",
    "\n\n \t\n a",
]  # fmt: skip


def hard_strings(count: int = 300, seed: int = 0) -> list[str]:
    """So many strings: those above, runs of 2 to 300 spaces or line ends, random code points, and mixtures."""
    rng = random.Random(seed)
    made = list(FIXED)
    for length in (2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 128, 255, 300):
        made += [" " * length, f"a{' ' * length}b", "\n" * length, f"{' ' * length}\n", f"\n{' ' * length}x"]
    while len(made) < count:
        kind = len(made) % 4
        if kind == 0:
            made.append("".join(code_point(rng) for _ in range(rng.randint(1, 24))))
        elif kind == 1:
            made.append("".join(rng.choice(" \n\t\r\u00a0'.,a1é²") for _ in range(rng.randint(1, 40))))
        elif kind == 2:
            made.append("".join(rng.choice(FIXED) for _ in range(4)))
        else:
            made.append("".join(rng.choice(HINDI + "’'\u200d e\u0301²½_-") for _ in range(rng.randint(2, 30))))
    return made[:count]


def code_point(rng: random.Random) -> str:
    """A character that Unicode 14 has; libraries that know a later Unicode differ on what it has added."""
    while True:
        character = chr(rng.choice([rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x20000)]))
        if unicodedata.category(character) not in ("Cn", "Cs"):
            return character
