"""A folder of photographs: every bad one is named with its reason, every odd one becomes an upright RGB copy."""

import re
import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image

from dist3dgs.errors import UserError
from dist3dgs.scenes.photos import UnusablePhoto, load_pixels, prepare_photos

RNG = np.random.default_rng(0)


def noise(width=64, height=48, channels=3):
    coarse = RNG.integers(0, 256, (height // 8, width // 8, channels), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


def save(folder, name, pixels=None, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise() if pixels is None else pixels
    Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0]).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        save(tmp_path / "photos", f"good_{i}.jpg", quality=95)
    return tmp_path / "photos"


def prepare(folder):
    return prepare_photos(folder, folder.parent / "copies")


def test_good_photographs_are_linked_not_copied(folder):
    result = prepare(folder)
    assert [p.name for p in result.photos] == [f"good_{i}.jpg" for i in range(4)]
    assert not result.left_out and not result.notes
    assert len({p.camera for p in result.photos}) == 1
    copy = folder.parent / "copies" / "good_0.jpg"
    assert copy.is_symlink() and copy.read_bytes() == (folder / "good_0.jpg").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", "empty file"),
        ("text.jpg", b"this is no picture\n", "not a picture"),
        ("notes.txt", b"remember the milk", "not a picture"),
        ("clip.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 100, "video"),
        ("header.png", b"\x89PNG\r\n\x1a\n", "damaged|not a picture"),
    ],
)
def test_files_that_are_no_photographs_are_named(folder, name, content, reason):
    (folder / name).write_bytes(content)
    result = prepare(folder)
    assert len(result.photos) == 4 and list(result.left_out) == [name]
    assert re.search(reason, result.left_out[name])


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_photographs_are_left_out(folder, kind, share):
    """pycolmap takes a JPEG cut in half without a word, and registers it."""
    path = save(folder, f"cut.{kind}", RNG.integers(0, 256, (96, 128, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    result = prepare(folder)
    assert list(result.left_out) == [f"cut.{kind}"] and len(result.photos) == 4


def test_tiny_pictures_are_left_out(folder):
    save(folder, "thumb.jpg", noise(16, 16))
    assert "smaller than" in prepare(folder).left_out["thumb.jpg"]


def test_huge_pictures_are_left_out(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    save(folder, "bomb.png", noise(640, 480))
    with pytest.raises(UserError, match=r"bomb\.png.*2,000 pixels"):
        prepare(folder)


def working_copy(folder, result, name):
    (copy,) = [c for c, original in result.originals.items() if original == name]
    with Image.open(folder.parent / "copies" / copy) as image:
        assert image.mode == "RGB" and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return copy, np.asarray(image)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_exif_rotated_photographs_are_turned_upright(folder, orientation):
    pixels = noise()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    save(folder, "turned.png", pixels, exif=exif)
    result = prepare(folder)
    _, copy = working_copy(folder, result, "turned.png")
    expected = {
        2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).transpose(1, 0, 2), 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(copy, expected)
    assert "EXIF orientation" in result.notes["turned.png"]


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("grey.png", lambda p: p.convert("L"), lambda p: np.asarray(p.convert("L"))[..., None].repeat(3, -1)),
        ("palette.gif", lambda p: p.convert("P"), lambda p: np.asarray(p.convert("P").convert("RGB"))),
        ("cmyk.tif", lambda p: p.convert("CMYK"), lambda p: np.asarray(p.convert("CMYK").convert("RGB"))),
        ("plain.tif", lambda p: p, np.asarray),
        ("plain.webp", lambda p: p, None),
        ("plain.bmp", lambda p: p, np.asarray),
    ],
)
def test_other_kinds_become_rgb(folder, name, make, expected):
    picture = Image.fromarray(noise())
    make(picture).save(folder / name)
    result = prepare(folder)
    copy_name, copy = working_copy(folder, result, name)
    assert copy_name == f"{name}.png" and name in result.notes and not result.left_out
    if expected is not None:
        np.testing.assert_array_equal(copy, expected(picture))


def test_sixteen_bits_are_scaled_not_clipped(folder):
    deep = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    _, copy = working_copy(folder, prepare(folder), "deep.png")
    np.testing.assert_allclose(copy[..., 0], deep / 257, atol=0.51)


def test_transparency_is_laid_over_white(folder):
    pixels = np.dstack([noise(), np.full((48, 64), 0, np.uint8)])
    pixels[:24, :, 3] = 255
    save(folder, "clear.png", pixels)
    _, copy = working_copy(folder, prepare(folder), "clear.png")
    np.testing.assert_array_equal(copy[:24], pixels[:24, :, :3])
    assert (copy[24:] == 255).all()


def test_floating_point_pixels_are_left_out(folder):
    Image.fromarray(np.zeros((48, 64), np.float32)).save(folder / "depth.tif")
    assert "floating-point" in prepare(folder).left_out["depth.tif"]


def test_mixed_sizes_get_cameras_of_their_own_and_are_named(folder):
    save(folder, "other.jpg", noise(80, 48))
    result = prepare(folder)
    assert len(result.photos) == 5 and len({p.camera for p in result.photos}) == 2
    assert "80 x 48 px where most are 64 x 48" in result.notes["other.jpg"]


def test_focal_length_from_exif(folder):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 28
    save(folder, "phone.jpg", exif=exif)
    (photo,) = [p for p in prepare(folder).photos if p.name == "phone.jpg"]
    assert photo.focal_px == pytest.approx(28 / 36 * 64)
    assert all(
        p.focal_px is None
        for p in prepare_photos(folder, folder.parent / "again").photos
        if p.name != photo.name
    )


def test_same_stem_other_type_do_not_collide(folder):
    save(folder, "a.tif")
    save(folder, "a.png")
    save(folder, "a.bmp")
    save(folder, "a.tif.png")
    result = prepare(folder)
    assert {"a.png", "a.tif", "a.bmp", "a.tif.png"} <= set(result.originals.values())
    assert len(result.originals) == len(result.photos) == 8


def test_subfolders_and_odd_names(folder):
    save(folder, "left cam/ä b.jpg")
    assert "left cam/ä b.jpg" in [p.name for p in prepare(folder).photos]


@pytest.mark.parametrize("num", [0, 1, 2])
def test_too_few_photographs(tmp_path, num):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(num):
        save(folder, f"{i}.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=rf"{num} usable.*{num + 1} files(.|\n)*broken\.jpg") as error:
        prepare(folder)
    assert str(folder) in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        prepare_photos(tmp_path / "nothing", tmp_path / "copies")


def test_pixels_of_an_existing_model_are_never_turned(tmp_path):
    """Poses belong to the pixels as stored."""
    pixels = noise()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    np.testing.assert_array_equal(load_pixels(save(tmp_path, "a.png", pixels, exif=exif)), pixels)
    path = save(tmp_path, "b.jpg")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UnusablePhoto, match="truncated"):
        load_pixels(path)


def test_a_no_break_space_is_a_space(folder):
    """macOS puts one before AM and PM in the names of screenshots."""
    name = "Screenshot 2026-04-15 at 9.41.00\u202fAM.jpg"
    save(folder, name)
    result = prepare(folder)
    assert name in [p.name for p in result.photos] and not result.left_out


def test_an_odd_name_never_costs_the_folder(folder):
    save(folder, "line\nbreak.jpg")
    result = prepare(folder)
    assert len(result.photos) == 4 and "rename" in result.left_out["line\\nbreak.jpg"]


def test_litter_is_not_counted(folder):
    for name in (".DS_Store", "._good_0.jpg", "Thumbs.db"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    result = prepare(folder)
    assert len(result.photos) == 4 and not result.left_out


HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


@pytest.mark.parametrize(
    ("name", "content", "kind", "command"),
    [
        (
            "IMG 1.HEIC",
            HEIC,
            "HEIC",
            r"find -L \S+ -iname '\*\.heic' -exec heif-convert .* \{\} \{\}\.jpg \\;",
        ),
        ("IMG 1.jpg", HEIC, "HEIC", r"heif-convert -q 95 '\S+IMG 1.jpg' '\S+IMG 1.jpg.converted.jpg'"),
        ("IMG.heif", b"\0\0\0\x18ftypmif1", "HEIC", "heif-convert"),
        ("a.jxl", b"\xff\x0a\0", "JPEG XL", "djxl"),
        ("clip.MOV", b"\0\0\0\x14ftypqt  ", "video", r"ffmpeg -i \S+clip.MOV -vf fps=2 .*clip_%05d\.jpg"),
        ("clip.mkv", b"\x1aE\xdf\xa3", "video", "ffmpeg"),
        ("a.CR3", b"\0\0\0\x18ftypcrx ", "RAW", r"find .* -iname '\*\.cr3' -exec darktable-cli"),
    ],
)
def test_what_has_to_be_converted_is_named_with_the_command(folder, name, content, kind, command):
    (folder / name).write_bytes(content)
    result = prepare(folder)
    assert len(result.photos) == 4 and kind in result.left_out[name]
    (hint,) = result.hints
    assert re.search(command, hint), hint


def test_a_raw_file_is_not_taken_for_its_thumbnail(folder):
    """To Pillow a DNG is a TIFF: the small picture in front of the large one."""
    save(folder, "thumbnail.tif").rename(folder / "IMG_1.dng")
    result = prepare(folder)
    assert "RAW" in result.left_out["IMG_1.dng"] and "darktable" in result.hints[0]


def test_a_photograph_under_a_wrong_suffix_is_one(folder):
    save(folder, "a.jpg").rename(folder / "a.heic")
    assert "a.heic" in [p.name for p in prepare(folder).photos]


def test_nothing_but_heic_says_how_to_convert(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        (folder / f"IMG_{i}.HEIC").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"0 usable.*40(.|\n)*IMG_0\.HEIC(.|\n)*heif-convert") as error:
        prepare(folder)
    assert str(error.value).count("heif-convert") == 1


def test_a_video_as_images(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a video.*ffmpeg"):
        prepare_photos(tmp_path / "clip.mp4", tmp_path / "copies")


def smooth(seed):
    """A picture that survives being reduced."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.fixture
def dataset(tmp_path):
    """images, the same at half the size, and masks."""
    root = tmp_path / "dataset"
    for folder in ("images", "half", "cutouts"):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        smooth(i).save(root / f"images/{i}.jpg")
        smooth(i).resize((160, 120)).save(root / f"half/{i}.png")
        mask = np.zeros((240, 320), np.uint8)
        mask[50:90, 60:200] = 255
        Image.fromarray(mask).save(root / f"cutouts/{i}.jpg.png")
    return root


def test_copies_and_masks_are_not_trained_on(dataset):
    result = prepare(dataset)
    assert [p.name for p in result.photos] == [f"images/{i}.jpg" for i in range(4)]
    assert result.left_out["half/1.png"] == "a copy of images/1.jpg"
    assert "mask" in result.left_out["cutouts/1.jpg.png"] and len(result.left_out) == 8
    copies = dataset.parent / "copies"
    assert sorted(p.name for p in copies.rglob("*.*")) == [f"{i}.jpg" for i in range(4)], (
        "and no working copy"
    )


@pytest.mark.parametrize(
    "beside", ["images_2/0.jpg", "masks/0.png", "sparse/0/cameras.bin", "transforms.json"]
)
def test_the_root_of_a_dataset_is_refused(dataset, beside):
    for folder in ("half", "cutouts"):
        shutil.rmtree(dataset / folder)
    assert len(prepare_photos(dataset, dataset.parent / "alone").photos) == 4
    (dataset / beside).parent.mkdir(parents=True, exist_ok=True)
    (dataset / beside).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"dataset.*`images: {dataset / 'images'}`") as error:
        prepare(dataset)
    assert (f"`colmap: {dataset}`" in str(error.value)) == beside.startswith("sparse")


def test_two_cameras_with_the_same_names_are_no_copies(tmp_path):
    for i in range(3):
        for side in ("left", "right"):
            path = tmp_path / "photos" / side / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = smooth(i)
            if side == "right":
                shift = (1, 0, 12, 0, 1, 0)
                picture = picture.transform(picture.size, Image.Transform.AFFINE, shift)
            picture.save(path)
    result = prepare(tmp_path / "photos")
    assert len(result.photos) == 6 and not result.left_out


def test_the_same_file_twice_is_one_photograph(folder):
    (folder / "copy of good_1.jpg").write_bytes((folder / "good_1.jpg").read_bytes())
    (folder / "linked.jpg").symlink_to("good_2.jpg")
    result = prepare(folder)
    assert len(result.photos) == 4
    assert result.left_out == {
        "good_1.jpg": "a copy of copy of good_1.jpg",
        "linked.jpg": "a copy of good_2.jpg",
    }
