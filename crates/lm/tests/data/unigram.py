"""Writes unigram.json: a unigram tokenizer trained by sentencepiece, as transformers writes such, with ids that `tokenizers` gives.

Usage: python unigram.py"""

import io
import json
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

texts = [
    "Once upon a time there was a fox in a forest, and it was afraid of the dark.",
    "The fox had a friend, a cat called Minka, who lived in a small house near the forest.",
    "Every evening the cat and the fox told each other tales of the day: 1, 2, 3, 4, 5.",
    "Minka said: don't be afraid, the dark is only the day with its eyes closed.",
] * 3
with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
    # Characters that stand for others: fi in one, a full-width 2, a capital with an accent.
    rules.write("FB01\t66 69\nFF12\t32\nC9\tE9\n")
    rules.flush()
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, model_type="unigram", vocab_size=78, minloglevel=2,
        normalization_rule_tsv=rules.name, user_defined_symbols=["<tool>"], pad_id=3,
    )
proto = model.ModelProto.FromString(out.getvalue())
tokenizer = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=0))
tokenizer.normalizer = normalizers.Sequence(
    [
        normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
        normalizers.Strip(left=True, right=True),
        normalizers.Replace(Regex(" {2,}"), "▁"),
    ]
)
tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ["<unk>", "<s>", "</s>", "<pad>"]])
tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
cases = [
    "Once upon a time",
    "the cat and the fox don't tell tales.",
    "  two   spaces, three    ",
    "\ufb01t \uff12 \u00c9\u00e9",
    "dark 🐈🐈 and dark<tool>fox</s>",
    "",
]
ids = [[text, tokenizer.encode(text).ids] for text in cases]
with open("unigram.json", "w") as file:
    json.dump({"tokenizer": json.loads(tokenizer.to_str()), "ids": ids}, file, ensure_ascii=False)
    file.write("\n")
