# SPDX-License-Identifier: Apache-2.0
"""
Writes the documentation that comes with CPython to two text files: a tenth of its topics is for validation.

    python scripts/make_quickstart_data.py outputs/quickstart-data
"""

from pydoc_data.topics import topics

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.files import atomic_write
from rtransformer_hf.training.flags import CommandParser, output_folder

# Paragraphs up to this length, such as "Note:", may be in both splits.
SHORT_PARAGRAPH = 80


def split_topics(topics: dict[str, str]) -> tuple[str, str]:
    """
    Holds out every tenth topic, from the ninth on. Topics repeat each other, so the long paragraphs of held-out topics
    are left out of the others: otherwise validation text would be in the training data.
    """
    names = sorted(topics)
    held_out = names[8::10]
    validation_paragraphs = {paragraph.strip() for name in held_out for paragraph in topics[name].split("\n\n")}

    def is_new(paragraph: str) -> bool:
        return len(paragraph) <= SHORT_PARAGRAPH or paragraph.strip() not in validation_paragraphs

    train = [
        "\n\n".join(paragraph for paragraph in topics[name].split("\n\n") if is_new(paragraph))
        for name in names
        if name not in held_out
    ]
    return "\n\n".join(train), "\n\n".join(topics[name] for name in held_out)


def main(argv: list[str] | None = None):
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "output_dir", type=output_folder, help="Folder for python-topics.train.txt and python-topics.validation.txt."
    )
    output_dir = parser.parse_args(argv).output_dir

    for split, text in zip(("train", "validation"), split_topics(topics), strict=True):
        path = output_dir / f"python-topics.{split}.txt"
        atomic_write(path, text.encode())
        print(f"{path}: {len(text):,} characters")


if __name__ == "__main__":
    run_command(main)
