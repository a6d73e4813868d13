"""Build hyponyms.json, parts.json and compounds.json in src/fusioner/data from WordNet 3.0.

    python tools/build_hyponyms.py           # needs WordNet 3.0 in /usr/share/wordnet (Debian: wordnet-base)

hyponyms.json maps class names to the words they include. A word is listed for a class if its most frequent noun sense
is a hyponym or a synonym of the class ("cyclist": person, "settee": sofa), and with it its irregular plurals ("men",
"children"). Words with several senses are excluded if the first one never occurs in WordNet's tagged texts ("peach", a
tree or a fruit), unless all senses are of the class. Names that the bundled ImageNet classifier distinguishes ("tabby")
are excluded, as they would be merged with their class. Words for people are included only if they occur as such in the
tagged texts, have no other concrete sense unless they are common, and are not marked as slurs. parts.json lists body
parts, and parts of trained classes. compounds.json lists nouns whose last word is one of all these, but which denote
something else ("sea horse", "Ferris wheel").
"""

import json
import re
from collections import defaultdict
from pathlib import Path

from fusioner.model.checkpoint import load_model
from fusioner.weights import weights_file

WORDNET = Path("/usr/share/wordnet")
OUT = Path(__file__).resolve().parents[1] / "src" / "fusioner" / "data"
COMMON = 10  # occurrences above which a word for people may have other concrete senses
EXTRA = {
    "person": [
        "adult", "astronaut", "bicyclist", "chef", "commuter", "couple", "crowd", "driver", "family", "firefighter",
        "goalkeeper", "jogger", "motorcyclist", "pedestrian", "skateboarder", "skier", "snowboarder", "surfer", "teen",
        "toddler", "umpire",
    ],
    "aeroplane": ["aircraft"],
    "airplane": ["aircraft"],
    "bird": ["chick", "chicken", "duckling", "gosling", "turkey"],
    "boat": ["canoe", "ferry", "sailboat", "sailing boat", "yacht"],
    "boots": ["boot"],
    "bus": ["double decker"],
    "car": ["hatchback", "suv", "van"],
    "cat": ["kitty"],
    "cell phone": ["cellular phone", "mobile", "phone", "telephone"],
    "cow": ["calf", "calves", "oxen"],
    "cup": ["mug", "teacup"],
    "fire hydrant": ["hydrant"],
    "grass": ["lawn"],
    "horse": ["colt", "foal"],
    "hot dog": ["frankfurter"],
    "mouse": ["mice"],
    "pants": ["trousers"],
    "pavement": ["sidewalk"],
    "potted plant": ["house plant", "plant", "pot plant"],
    "road": ["street"],
    "sandals": ["sandal"],
    "sandwich": ["burger", "hamburger"],
    "sea": ["ocean"],
    "shoes": ["shoe"],
    "sneakers": ["sneaker"],
    "sports ball": ["football", "softball"],
    "t-shirt": ["t shirt", "tshirt"],
    "table": ["desk"],
    "umbrella": ["parasol"],
    "wine glass": ["drinking glass", "glass"],
}  # fmt: skip
EXTRA_PARTS = (
    "beard", "bumper", "collar", "engine", "eyebrow", "eyelash", "fin", "fur", "headlight", "horn", "license plate",
    "mane", "moustache", "mustache", "number plate", "pedal", "propeller", "saddle", "sleeve", "steering wheel",
    "taillight", "tire", "trunk", "tusk", "tyre", "whisker",
)  # fmt: skip
PARTS = {"ear", "head", "nail", "wing", "claw", "car wheel", "car mirror"}
"""Parts that are also names of ImageNet classes; other such names (cab, chest) are also objects."""
EXCLUDED = frozenset(
    {"cripple", "commie", "imbecile", "idiot", "savage", "stupid", "whore", "cannon fodder", "mental case", "maniac",
     "slave", "white man", "nymphomaniac", "street", "conveyor", "classifier", "mover", "movers", "fresh fish",
     "exotic dancer", "charger", "mount", "booth", "vas"}
)  # fmt: skip
WHOLES = (
    "aeroplane",
    "bicycle",
    "boat",
    "bus",
    "car",
    "motorcycle",
    "train",
    "truck",
    "bird",
    "person",
    "wheeled vehicle",
)
"""Classes whose parts are listed."""
SENSES = {
    "aeroplane": "airplane", "boat": "vessel#2", "motorbike": "motorcycle", "potted plant": None,
    "tv monitor": "television",
    "tv": "television", "sports ball": "ball", "donut": "doughnut", "cell phone": "cellular telephone",
    "hair drier": "hand blower", "remote": "remote control", "mouse": "mouse#4", "tie": "necktie", "kite": "kite#3",
    "orange": "orange#1", "top": "top#10", "wood floor": None, "brick wall": None, "stone wall": None,
    "tile wall": None, "wood wall": None, "dining table": "dining table", "light": None, "net": None, "food": None,
    "water": None, "paper": None, "platform": None, "counter": "counter#1", "skin": None, "hair": None,
    "ring": "ring#8", "watch": "watch#1", "bag": "bag#1", "suit": "suit#1", "heels": None, "flats": None,
    "pumps": None, "wedges": None, "intimate": None, "accessories": None, "dirt": None, "rock": "rock#1",
    "fruit": None, "house": "house#1", "table": "table#2", "wall": "wall#1", "rug": "rug#1", "building": "building#1",
    "cabinet": "cabinet#1", "book": "book#2", "bridge": "bridge#1", "tree": "tree#1", "bowl": "bowl#3",
    "remote control": None, "sand": None, "sea": "sea#1", "person": "person",
}  # fmt: skip
"""Class name -> its WordNet lemma (with `#sense` unless it is the first); None: no words are listed."""


def read_index() -> dict[str, list[str]]:
    """Map each noun lemma to the offsets of its synsets, the most frequent sense first."""
    senses = {}
    for line in (WORDNET / "index.noun").read_text().splitlines():
        if not line.startswith(" "):
            fields = line.split()
            count = int(fields[2])
            senses[fields[0].replace("_", " ")] = fields[-count:]
    return senses


def read_synsets() -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
    """Map synset offsets to their words, to the offsets of their direct hyponyms, and to those of their parts."""
    words, hyponyms_of, parts = {}, defaultdict(list), defaultdict(list)
    for line in (WORDNET / "data.noun").read_text().splitlines():
        if line.startswith(" "):
            continue
        fields = line.split(" | ")[0].split()
        count = int(fields[3], 16)
        words[fields[0]] = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
        pointers = fields[5 + 2 * count :]
        for kind, target in zip(pointers[::4], pointers[1::4], strict=False):
            if kind == "@":
                hyponyms_of[target].append(fields[0])
            elif kind == "%p":
                parts[fields[0]].append(target)
    return words, hyponyms_of, parts


def tag_counts() -> tuple[dict[str, int], dict[str, int]]:
    """Map words to their occurrences in WordNet's tagged texts: of the first noun sense, and as adjectives."""
    nouns, adjectives = {}, defaultdict(int)
    for line in (WORDNET / "cntlist.rev").read_text().splitlines():
        key, sense, count = line.split()
        word = key.split("%")[0].replace("_", " ")
        if "%1:" in key and sense == "1":
            nouns[word] = int(count)
        elif "%3:" in key or "%5:" in key:
            adjectives[word] += int(count)
    return nouns, adjectives


def slurs() -> set[str]:
    """Return the offsets of the synsets whose gloss marks an offensive word."""
    lines = (WORDNET / "data.noun").read_text().splitlines()
    marks = (
        "slur",
        "offensive",
        "derogatory",
        "disparag",
        "abuse",
        "obscene",
        "vulgar",
        "insult",
        "contempt",
        "pejorative",
    )
    return {line.split()[0] for line in lines if any(mark in line.split(" | ")[-1] for mark in marks)}


def plurals() -> dict[str, list[str]]:
    """Map singular nouns to their irregular plurals."""
    table = defaultdict(list)
    for line in (WORDNET / "noun.exc").read_text().splitlines():
        plural, *singulars = line.split()
        for singular in singulars:
            table[singular.replace("_", " ")].append(plural.replace("_", " "))
    return table


def subtree(root: str, hyponyms_of: dict[str, list[str]]) -> set[str]:
    """Return the offset of a synset and of all its hyponyms."""
    found, stack = set(), [root]
    while stack:
        offset = stack.pop()
        if offset not in found:
            found.add(offset)
            stack += hyponyms_of[offset]
    return found


def find_synset(name: str, senses: dict[str, list[str]]) -> str | None:
    """Return the offset of the synset that a class name denotes, see `SENSES`; None if there is none."""
    lemma, _, sense = (SENSES.get(name, name) or "").partition("#")
    return senses[lemma][int(sense or 1) - 1] if lemma in senses else None


def main() -> None:
    """Write the files."""
    card = load_model(weights_file("default.safetensors"))[1]
    classes = card.training["classes"]
    senses, (words, hyponyms_of, parts), irregular = read_index(), read_synsets(), plurals()
    table_of_names = weights_file("imagenet_names.tsv").read_text("utf-8").splitlines()
    imagenet = {name.strip().casefold() for line in table_of_names for name in line.split("\t")[1].split(", ")}
    class_names = {name.casefold() for name in classes}
    (counts, adjectives), offensive = tag_counts(), slurs()
    people = subtree(senses["person"][0], hyponyms_of)
    things = subtree(senses["physical entity"][0], hyponyms_of) - people

    def denotes_person(word: str) -> bool:
        count = counts.get(word, 0)
        return count >= COMMON or (count > 0 and not things & set(senses[word]))

    table: dict[str, list[str]] = {}
    spans: dict[str, set[str]] = {}  # synsets of a class
    for name in classes:
        root = find_synset(name, senses)
        if root is None:
            continue
        found = set[str]()
        synsets = spans[name] = subtree(root, hyponyms_of)
        for synset in synsets:
            for word in words[synset] if synset not in offensive else ():
                key = word.casefold()
                if name == "person" and not denotes_person(key):
                    continue
                if (not counts.get(key) and set(senses.get(key, ())) - synsets) or (
                    adjectives[key] > counts.get(key, 0)
                ):
                    continue
                first_sense = senses.get(key, [None])[0] == synset
                proper_noun = re.fullmatch(r"[a-z][a-z' -]+", word) is None
                if first_sense and not proper_noun and key not in class_names and key not in imagenet | EXCLUDED:
                    found |= {key, *irregular.get(key, ())}
        table[name] = sorted(found)
    for name, extra in EXTRA.items():
        table[name] = sorted({*table.get(name, ()), *extra} - class_names)
    table = {name: found for name, found in table.items() if found}
    lines = (f"  {json.dumps(name)}: {json.dumps(found, ensure_ascii=False)}" for name, found in table.items())
    (OUT / "hyponyms.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    print(f"hyponyms.json: {sum(map(len, table.values()))} words of {len(table)} classes")

    offsets = subtree(senses["body part"][0], hyponyms_of)
    for name in WHOLES:
        whole = find_synset(name, senses)
        assert whole
        offsets |= {part for offset in subtree(whole, hyponyms_of) for part in parts[offset]}
    offsets -= subtree(senses["food"][0], hyponyms_of)
    part_words = {
        word.casefold() for offset in offsets for word in words[offset] if senses[word.casefold()][0] == offset
    }
    hyponyms = {word for found in table.values() for word in found}
    parts_listed = (part_words - class_names - imagenet | PARTS & imagenet | set(EXTRA_PARTS)) - hyponyms - EXCLUDED
    (OUT / "parts.json").write_text(json.dumps({"parts": sorted(parts_listed)}, ensure_ascii=False) + "\n", "utf-8")
    print(f"parts.json: {len(parts_listed)} words")

    classes_of = defaultdict(set, {name.casefold(): {name} for name in classes})
    for name, listed in table.items():
        for word in listed:
            classes_of[word].add(name)
    heads = parts_listed | set(classes_of)
    proper_nouns = {word.casefold() for synset in words.values() for word in synset if not word.split()[-1].islower()}
    phrases = {name for name in {*senses, *imagenet} - heads - proper_nouns if " " in name}

    def is_kind_of_its_head(compound: str) -> bool:
        offsets = set(senses.get(compound, ()))
        return any(spans.get(name, set()) & offsets for name in classes_of[compound.split()[-1]])

    compounds = sorted(
        name for name in phrases if name.split()[-1] in heads and (name in imagenet or not is_kind_of_its_head(name))
    )
    (OUT / "compounds.json").write_text(json.dumps({"compounds": compounds}, ensure_ascii=False) + "\n", "utf-8")
    print(f"compounds.json: {len(compounds)} words")


if __name__ == "__main__":
    main()
