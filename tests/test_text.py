"""The text encoder and the decoder of answers, against Hugging Face's layers and slow loops."""

import pytest
import torch

from tokred.text import Context, TextDecoder, TextEncoder, TextSizes

SIZES = TextSizes(30, 24, 5, 3, fusion_layer=3, context_dim=24, mlp_ratio=2, max_positions=12)


@pytest.fixture
def encoder():
    return drawn(TextEncoder(SIZES))


@pytest.fixture
def decoder():
    return drawn(TextDecoder(SIZES))


@torch.no_grad()
def drawn(module):
    """With weights of which none is neutral."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.3 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return module.eval()


def texts(number=4, length=7):
    """Ids and mask; the first text is the longest."""
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(1, 30, (number, length), generator=generator)
    mask_BL = torch.arange(length) < torch.tensor([length, 3, 1, 5])[:number, None]
    return ids_BL, mask_BL


def video(number=1, tokens=6):
    return torch.randn(number, tokens, 24, generator=torch.Generator().manual_seed(2))


# Against Hugging Face


def additive(mask):
    return (1 - mask.float()) * torch.finfo(torch.float32).min


def hugging_face(layer, *, cross):
    """Their layer with our parameters, by our names."""
    bert = pytest.importorskip("transformers.models.bert.modeling_bert")
    given = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, "layer_norm_eps": 1e-12}
    given |= {"is_decoder": True, "add_cross_attention": True} if cross else {}
    config = bert.BertConfig(**given)
    config._attn_implementation = "eager"
    theirs = bert.BertLayer(config)
    theirs.load_state_dict(layer.state_dict(), strict=True)
    return theirs.eval()


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("number", [0, 2])
@torch.no_grad()
def test_a_text_layer_is_hugging_faces(number, encoder):
    layer, (_, mask_BL) = encoder.encoder.layer[number], texts()
    x_BLC = torch.randn(4, 7, 24, generator=torch.Generator().manual_seed(3))
    expected = first(hugging_face(layer, cross=False)(x_BLC, attention_mask=additive(mask_BL[:, None, None])))
    torch.testing.assert_close(layer(x_BLC, mask_BL[:, None, None]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [3, 4])
@torch.no_grad()
def test_a_fusion_layer_is_hugging_faces_with_cross_attention(number, encoder):
    layer, (_, mask_BL) = encoder.encoder.layer[number], texts()
    x_BLC = torch.randn(4, 7, 24, generator=torch.Generator().manual_seed(3))
    theirs = hugging_face(layer, cross=True)
    seen = torch.ones(4, 1, 1, 6)
    expected = first(
        theirs(
            x_BLC,
            attention_mask=additive(mask_BL[:, None, None]),
            encoder_hidden_states=video(4),
            encoder_attention_mask=additive(seen),
        )
    )
    ours = layer(x_BLC, mask_BL[:, None, None], layer.crossattention.context(video(4)))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reading_then_fusing_is_one_run_over_all_of_hugging_faces_layers(encoder):
    ids_BL, mask_BL = texts()
    expected = encoder.embeddings(ids_BL)
    seen = {"encoder_hidden_states": video(4), "encoder_attention_mask": additive(torch.ones(4, 1, 1, 6))}
    for number, layer in enumerate(encoder.encoder.layer):
        theirs = hugging_face(layer, cross=number >= SIZES.fusion_layer)
        looks = seen if number >= SIZES.fusion_layer else {}
        expected = first(theirs(expected, attention_mask=additive(mask_BL[:, None, None]), **looks))
    ours = encoder.fuse(encoder.read(ids_BL, mask_BL), mask_BL, encoder.contexts(video(4)))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_decoder_is_hugging_faces_layers_under_a_causal_mask(decoder):
    ids_BL, mask_BL = texts()
    causal_B1LL = mask_BL[:, None, None] & torch.ones(7, 7).tril().bool()
    expected = decoder.bert.embeddings(ids_BL)
    seen = {"encoder_hidden_states": video(4, 5), "encoder_attention_mask": additive(torch.ones(4, 1, 1, 5))}
    for layer in decoder.bert.encoder.layer:
        expected = first(hugging_face(layer, cross=True)(expected, attention_mask=additive(causal_B1LL), **seen))
    torch.testing.assert_close(decoder(ids_BL, mask_BL, asked(decoder)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_embeddings_are_hugging_faces(encoder):
    bert = pytest.importorskip("transformers.models.bert.modeling_bert")
    config = bert.BertConfig(
        vocab_size=30, hidden_size=24, max_position_embeddings=12, num_attention_heads=3, layer_norm_eps=1e-12
    )
    theirs = bert.BertEmbeddings(config).eval()
    theirs.load_state_dict(encoder.embeddings.state_dict(), strict=True)
    torch.testing.assert_close(encoder.embeddings(texts()[0]), theirs(texts()[0]))


# Reading and fusing


@torch.no_grad()
def test_padding_changes_nothing(encoder):
    ids_BL, mask_BL = texts()
    whole = encoder.fuse(encoder.read(ids_BL, mask_BL), mask_BL, encoder.contexts(video()))
    for text, length in enumerate(mask_BL.sum(1).tolist()):
        ids, mask = ids_BL[text : text + 1, :length], mask_BL[text : text + 1, :length]
        alone = encoder.fuse(encoder.read(ids, mask), mask, encoder.contexts(video()))
        torch.testing.assert_close(whole[text, :length], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_texts_share_the_keys_and_values_of_their_video(encoder):
    """Two texts in a row at each of two videos are what each is alone."""
    ids_BL, mask_BL = texts()
    states, videos = encoder.read(ids_BL, mask_BL), video(2)
    together = encoder.fuse(states, mask_BL, encoder.contexts(videos))
    for text in range(4):
        one = slice(text, text + 1)
        alone = encoder.fuse(states[one], mask_BL[one], encoder.contexts(videos[text // 2][None]))
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_places_of_a_context_that_are_not_real_are_not_seen(encoder):
    ids_BL, mask_BL = texts(2)
    mask_GN = torch.tensor([[True] * 4 + [False] * 2])
    states = encoder.read(ids_BL, mask_BL)
    masked = encoder.fuse(states, mask_BL, encoder.contexts(video(), mask_GN))
    cut = encoder.fuse(states, mask_BL, encoder.contexts(video()[:, :4]))
    torch.testing.assert_close(masked, cut, atol=1e-5, rtol=1e-5)


def test_some_contexts_are_those_of_their_places():
    context = Context(torch.arange(3)[:, None], 10 * torch.arange(3)[:, None], torch.eye(3, dtype=torch.bool))
    some = context.of([2, 0])
    assert some.k_GHND.flatten().tolist() == [2, 0] and some.v_GHND.flatten().tolist() == [20, 0]
    assert some.mask_GN.tolist() == [[False, False, True], [True, False, False]]


@torch.no_grad()
def test_the_places_that_are_wanted_are_what_they_are_among_all(encoder):
    ids_BL, mask_BL = texts()
    states, contexts = encoder.read(ids_BL, mask_BL), encoder.contexts(video())
    whole, first = (encoder.fuse(states, mask_BL, contexts, places=places) for places in (None, 1))
    assert first.shape == (4, 1, 24)
    torch.testing.assert_close(first, whole[:, :1], atol=1e-5, rtol=1e-5)


# The decoder


@torch.no_grad()
def asked(decoder, number=4):
    return decoder.contexts(video(number, 5), torch.ones(number, 5, dtype=torch.bool))


@torch.no_grad()
def test_a_later_word_piece_changes_nothing_before_it(decoder):
    ids_BL, mask_BL = texts()
    changed = ids_BL.clone()
    changed[:, 4:] = 1
    before, after = (decoder(ids, torch.ones_like(mask_BL), asked(decoder)) for ids in (ids_BL, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@torch.no_grad()
def test_the_logits_come_from_the_words_themselves(decoder):
    state = torch.randn(24, generator=torch.Generator().manual_seed(4))
    head = decoder.cls.predictions
    hidden = torch.nn.functional.gelu(head.transform.dense(state))
    expected = decoder.bert.embeddings.word_embeddings.weight @ head.transform.LayerNorm(hidden) + head.bias
    torch.testing.assert_close(decoder.logits(state), expected)


@torch.no_grad()
def test_the_likelihood_is_the_sum_over_the_pieces_after_the_first(decoder, monkeypatch):
    ids_BL, mask_BL = texts()
    expected = []
    for text in range(4):
        contexts, total = [context.of([text]) for context in asked(decoder)], 0.0
        for place in range(1, int(mask_BL[text].sum())):
            ids = ids_BL[text : text + 1, :place]
            last = decoder(ids, torch.ones_like(ids, dtype=torch.bool), contexts)[0, -1]
            total += decoder.logits(last).log_softmax(-1)[ids_BL[text, place]].item()
        expected.append(total)
    monkeypatch.setattr("tokred.text._LOGITS_AT_ONCE", 2 * 6 * 30)  # two texts at once
    torch.testing.assert_close(
        decoder.log_likelihood(ids_BL, mask_BL, asked(decoder)), torch.tensor(expected), atol=1e-4, rtol=1e-5
    )
