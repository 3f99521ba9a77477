"""The source measure."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpmc import Source, methods
from fpmc.source import to_float, to_uint8, union


def test_floats_that_may_be_pixels_scaled_to_0_1_are_warned_of(recwarn):
    with pytest.warns(UserWarning, match=r"from 0 to 1; if pixels were scaled .* 2 \* images - 1"):
        Source(torch.linspace(0, 1, 8).view(2, 1, 2, 2))
    recwarn.clear()
    for images in (torch.linspace(-0.1, 1, 8), torch.zeros(8), torch.linspace(0, 0.1, 8)):
        Source(images.view(2, 1, 2, 2))
    assert not recwarn


@given(st.integers(0, 255))
def test_pixel_values_and_floats_are_inverse_to_each_other(value):
    pixel = torch.full((1, 1, 2, 2), value, dtype=torch.uint8)
    as_float = to_float(pixel)
    assert -1 <= as_float.min() <= as_float.max() <= 1
    assert torch.equal(to_uint8(as_float), pixel)


def test_images_stay_as_they_are_given_and_are_read_as_floats():
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    source = Source(pixels)
    assert source.images is pixels
    assert len(source) == 5
    assert source.shape == (3, 4, 4)
    torch.testing.assert_close(source[1:3], pixels[1:3].float() / 127.5 - 1)
    assert source.read(torch.tensor([4, 0]), torch.float64).dtype == torch.float64
    assert "5 images, 3 × 4 × 4" in repr(source)


def test_an_array_of_the_other_byte_order_is_a_source():
    values = np.linspace(-1, 1, 18, dtype=np.float32).reshape(2, 1, 3, 3)
    assert torch.equal(Source(values.astype(">f4"))[:], Source(values)[:])


def test_a_memory_mapped_array_is_a_source(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (6, 1, 3, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", array)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    torch.testing.assert_close(Source(mapped)[:], torch.from_numpy(array).float() / 127.5 - 1)


@pytest.mark.parametrize("weights", [[1, 2, 5], [1e308, 1e308, 1e308], [1e-300, 1, 1]])
def test_weights_are_scaled_to_one(weights):
    source = Source(torch.zeros(3, 1, 2, 2), weights)
    torch.testing.assert_close(source.log_weights.exp().sum().item(), 1.0)
    assert source.log_weights.isfinite().all()


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("images", "weights", "error", "says"),
    [
        (torch.zeros(0, 3, 4, 4), None, ValueError, "images: got shape (0, 3, 4, 4)"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), None, ValueError, "images: got shape (0,"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), None, ValueError, "images: got shape (3, 4, 4)"),
        (torch.zeros(2, 3, 4), None, ValueError, "images: got shape (2, 3, 4)"),
        (torch.full((1, 1, 2, 2), torch.nan), None, ValueError, "images: got NaN"),
        (torch.full((1, 1, 2, 2), 1.01), None, ValueError, "wanted them in [-1, 1]"),
        (torch.full((1, 1, 2, 2), 200.0), None, ValueError, "pass pixel values as uint8"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int32), None, TypeError, "wanted uint8 pixel values"),
        (np.full((1, 1, 2, 2), "a"), None, TypeError, "images: got an array of <U1"),
        (torch.zeros(2, 1, 2, 2), ["a", "b"], TypeError, "weights: got something else"),
        ([[1.0]], None, TypeError, "a tensor or array (n, c, h, w) (torch.stack"),
        (torch.ones(1, 1, 2, 2).double() + 1e-15, None, ValueError, "to 1.00000000000000"),
        (torch.zeros(2, 8, 8, 3), None, ValueError, "images.movedim(-1, 1)"),
        (np.zeros((2, 8, 8, 3)), None, ValueError, "np.moveaxis(images, -1, 1)"),
        ([torch.zeros(1, 2, 2)], None, TypeError, "torch.stack makes one"),
        ([np.zeros((1, 2, 2))], None, TypeError, "np.stack makes one"),
        (torch.zeros(2, 48, 64, 3), None, ValueError, "looks like (n, h, w, c)"),
        (torch.zeros(2, 1, 2, 2).to_sparse(), None, TypeError, "images: got torch.sparse_coo"),
        (torch.zeros(2, 1, 2, 2, device="meta"), None, TypeError, "torch.strided on meta"),
        (np.ma.zeros((2, 1, 2, 2), np.uint8), None, TypeError, "images: got a masked array"),
        (torch.zeros(2, 1, 2, 2, requires_grad=True), None, ValueError, "wanted images.detach()"),
        (
            torch.zeros(2, 1, 2, 2),
            torch.ones(2, requires_grad=True),
            ValueError,
            "wanted weights.detach()",
        ),
        (torch.zeros(2, 1, 2, 2), [1.0], ValueError, "weights: got shape (1,), wanted (2,)"),
        (torch.zeros(2, 1, 2, 2), [1.0, 0.0], ValueError, "weights: got values"),
        (torch.zeros(2, 1, 2, 2), [1.0, torch.nan], ValueError, "weights: got values"),
    ],
)
def test_bad_input_is_named(images, weights, error, says):
    with pytest.raises(error) as caught:
        Source(images, weights)
    assert says in str(caught.value)


@pytest.mark.usefixtures("as_users_do")
def test_conversions_name_what_they_cannot_convert():
    for images in (torch.zeros(1, 1, 2, 2), np.zeros((1, 1, 2, 2), np.uint8)):
        with pytest.raises(TypeError, match=r"images: got .*, wanted a tensor of uint8"):
            to_float(images)
    with pytest.raises(TypeError, match=r"images: got torch\.uint8, wanted a floating-point"):
        to_uint8(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images: got NaN"):
        to_uint8(torch.full((1, 1, 2, 2), torch.nan))


class TestShards:
    """Contiguous parts of a source."""

    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).repeat(1, 1, 4, 4)

    @pytest.mark.parametrize("world", [1, 3, 4, 13])
    def test_together_they_are_the_source(self, world):
        parents = torch.tensor([-1, 0, -1, 2, 9, -1, 9, -1, 7, -1])
        labels, weights = torch.arange(10) % 3, torch.arange(1, 11)
        whole = Source(self.images, weights, labels, parents)
        shards = [whole.shard(rank, world) for rank in range(world)]
        for name in ("images", "labels", "log_weights"):
            parts = torch.cat([getattr(shard, name) for shard in shards])
            assert torch.equal(parts, getattr(whole, name))
        assert {len(shard) for shard in shards} <= {10 // world, -(-10 // world)}
        for shard in filter(len, shards):
            first = int(shard.images[0, 0, 0, 0])
            copies = shard.parents >= 0
            originals = shard.images[shard.parents[copies], 0, 0, 0].long()
            assert torch.equal(originals, parents[first : first + len(shard)][copies])

    def test_nothing_is_copied(self):
        whole = union(Source(self.images), Source(self.images[:5]))
        first, second = (whole.shard(rank, 2) for rank in range(2))
        assert len(first.parts) == 1
        assert [len(part) for part in second.parts] == [3, 5]
        assert second.parts[0].data_ptr() == self.images[7].data_ptr()
        assert second.parts[1].data_ptr() == self.images.data_ptr()
        assert torch.equal(torch.cat([first[:], second[:]]), whole[:])

    def test_an_empty_one_alone_has_no_answer(self):
        empty = Source(self.images).shard(0, 11)
        assert len(empty) == 0
        assert empty[:].shape == (0, 1, 4, 4)
        with pytest.raises(ValueError, match="source: got no images, wanted some"):
            methods.optimal(empty)(torch.zeros(1, 1, 4, 4), 1.0)

    @pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
    def test_there_is_no_other(self, rank, world):
        with pytest.raises(ValueError, match="wanted"):
            Source(self.images).shard(rank, world)


class TestClasses:
    """A source's labels, and the images of one class."""

    images = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1).expand(12, 1, 4, 4)
    labels = torch.arange(12) % 3

    def test_a_class_is_a_source_of_its_images(self):
        source = Source(self.images, labels=self.labels)
        part = source.of_class(1)
        assert torch.equal(part.images, self.images[1::3])
        assert part.log_weights is None
        assert part.labels.tolist() == [1] * 4
        assert len(source) == 12

    @given(label=st.integers(0, 2), seed=st.integers(0, 99))
    def test_its_weights_are_the_conditional_ones(self, label, seed):
        weights = torch.rand(12, generator=torch.Generator().manual_seed(seed)) + 0.1
        part = Source(self.images, weights, self.labels).of_class(label)
        torch.testing.assert_close(
            part.log_weights.exp(), (weights[label::3] / weights[label::3].sum()).double()
        )

    def test_the_optimal_denoiser_of_classes_mixes_to_that_of_all(self):
        """D(z) is the mean of D(z | y) with the classes' posterior probabilities."""
        x = 2 * torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 1
        source, z = Source(x, labels=self.labels), x[:2] + 0.5
        answers = torch.stack(
            [methods.optimal(source.of_class(label))(z, 0.7) for label in range(3)]
        )
        distances = ((z[:, None] - x) ** 2).sum((2, 3, 4))
        weights = (-distances / (2 * 0.7**2)).softmax(1)
        shares = torch.stack([weights[:, label::3].sum(1) for label in range(3)])
        mixed = (shares[..., None, None, None] * answers).sum(0)
        torch.testing.assert_close(mixed, methods.optimal(source)(z, 0.7))

    def test_images_that_are_left_out_stay_so(self):
        source = Source(self.images, labels=self.labels).without([1, 4])
        part = source.of_class(1)
        assert part.log_weights.exp().tolist() == pytest.approx([0, 0, 0.5, 0.5])
        with pytest.raises(ValueError, match="label: got 1, of which there is no image"):
            source.without([7, 10]).of_class(1)

    def test_classes_that_lie_together_are_not_copied(self):
        images = self.images.contiguous()
        part = Source(images, labels=self.labels.sort().values).of_class(1)
        assert part.images.data_ptr() == images[4].data_ptr()

    @pytest.mark.parametrize("kind", [list, np.asarray, torch.Tensor.int])
    def test_labels_are_whole_numbers_in_whatever_container(self, kind):
        given = kind(self.labels) if kind is not list else self.labels.tolist()
        assert torch.equal(Source(self.images, labels=given).labels, self.labels)

    @pytest.mark.parametrize(
        ("labels", "error", "says"),
        [
            (torch.arange(3), ValueError, "labels: got shape (3,), wanted (12,)"),
            (torch.zeros(12), TypeError, "labels: got something else than whole numbers"),
            (["a"] * 12, TypeError, "labels: got something else than whole numbers"),
            (torch.zeros(12, dtype=torch.bool), TypeError, "labels: got something else"),
        ],
    )
    def test_other_labels_are_named(self, labels, error, says):
        with pytest.raises(error) as caught:
            Source(self.images, labels=labels)
        assert says in str(caught.value)

    @pytest.mark.usefixtures("as_users_do")
    def test_classes_that_are_none_are_named(self):
        source = Source(self.images, labels=self.labels)
        with pytest.raises(ValueError, match=r"label: got 3, of which .* wanted of 0, 1, 2"):
            source.of_class(3)
        with pytest.raises(TypeError, match=r"label: got 1\.5"):
            source.of_class(1.5)
        with pytest.raises(ValueError, match="the source has no labels"):
            Source(self.images).of_class(0)
