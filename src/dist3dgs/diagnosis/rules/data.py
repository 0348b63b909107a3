"""Rules for photographs, structure from motion, unreadable files."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from .rule import Hit, Rule, Tier, patterns


def _is_of_points(hit: Hit) -> bool:
    """Accept scikit-learn's message about an empty array only where neighbours of points are searched."""
    if not re.search("Found array with 0 sample|n_samples", hit.line.text):
        return True
    return re.search(r"(?i)\bknn\b|point|splat|gaussian", hit.before(20)) is not None


RULES = (
    Rule(
        name="sfm-failed",
        cause="sfm_failed",
        tier=Tier.SPECIFIC,
        looks="`No good initial image pair found`, `failed to create sparse model`, `frame_0000.jpg not in the list of "
        "cameras`, `Could not recognize scene type!`, `the correct camera poses for current points cannot be accessed`",
        why="Structure from motion found no poses, or not for the images that the training needs: too few features or "
        "too little overlap, or its model is not in the expected place.",
        remedy="Photographs with more overlap and less blur; match exhaustively; more features; leave the named images out "
        "of the split.",
        phase="ingest",
        patterns=patterns(
            r"(?i)\S+\.(?:jpe?g|png|tiff?|heic|bmp) (?:is |was )?not (?:in|found in|part of) (?:the )?(?:list of )?(?:cameras|reconstruction|registered images|colmap|images\.(?:bin|txt))",
            r"(?i)(?:image|frame|view)s? [^\n]{0,80}(?:was|were|is|are|could) not (?:be )?registered|(?:no|zero|0) images? (?:were |was )?registered|failed to register",
            r"(?i)failed to create (?:any )?sparse model|(?:sparse )?reconstruction failed|mapper failed|no (?:sparse )?(?:model|reconstruction)s? (?:was |were )?(?:created|found|produced)",
            r"(?i)No good initial image pair found|Could not find (?:a )?good initial pair|no suitable initial pair",
            r"(?i)COLMAP only found poses? for|colmap[^\n]*(?:failed|returned non-zero|error code|did not)|Error running command: colmap|(?:feature (?:extraction|matching)|(?:exhaustive|sequential|spatial|vocab tree) match\w*|bundle adjustment|image undistortion) failed(?! for image)",
            r"Could not recognize scene type|(?i:COLMAP directory \S+ does not exist)|No such file or directory: '[^']*sparse/(?:0/)?(?:cameras|images|points3D)\.(?:txt|bin)'",
            # LLFF's imgs2poses: points were seen from images that COLMAP could not register.
            r"the correct camera poses for current points cannot be accessed",
            # GLOMAP: the images fall into groups that no match connects.
            r"(?i)(?:failed|unable|could not)[^\n]{0,40}(?:find|keep|extract|compute) [^\n]{0,30}connected component|view graph[^\n]{0,40}(?:is empty|not connected|disconnected|failed)|(?:rotation averaging|global positioning)[^\n]{0,20} failed",
            r"(?i)no images with matches|too few (?:images|matches|features|inliers)|not enough (?:matches|features|overlap)",
        ),
        unless=re.compile(r"(?i)^\s*(?:WARNING|\[warning)(?!: COLMAP only found poses for 1?\d(?:\.\d+)?%)"),
    ),
    Rule(
        name="no-points",
        cause="sfm_failed",
        tier=Tier.SPECIFIC,
        looks="`Number of points at initialisation :  0`, `Model initialized. Number of GS: 0`, `num_points3D = 0`, `Loaded 0 points`",
        why="There is no point to start from: structure from motion triangulated none, or the file with the points is empty "
        "or was not read. Whatever fails below, in a gradient's shape or a nearest neighbour, comes from the empty model.",
        remedy="Check the model: `colmap model_analyzer --path sparse/0` prints the number of points. If it is 0: "
        "photographs with more overlap, `colmap point_triangulator`, or a random start where the trainer has one. If not: "
        "delete a points3D.ply that an earlier run converted from an empty one, and check the path that the trainer reads.",
        phase="load",
        warns=True,
        patterns=patterns(
            r"(?i)\bnumber of (?:initial(?:i[sz]ed)? |input |sparse |3d |loaded |sfm |fused |seed )*(?:points|gaussians|splats|GSs?)(?: (?:at|before|after|for|on|in|during) (?:the )?initiali[sz]ation)?\s*[:=]+\s*0(?!\d|[.,]\d)",
            r"(?i)\b(?:num|#)[_ ]?(?:init(?:ial)?[_ ])?(?:points(?:3d)?|gaussians|splats|gs)['\"]?\s*[:=]\s*0(?!\d|[.,]\d)",
            r"(?i)\b(?:read(?:ing)?|load(?:ed|ing)?|found|import(?:ed|ing)?|init(?:iali[sz](?:ed|ing))?|creat(?:ed|ing)|start(?:ed|ing)?|fus(?:ed|ing)|triangulated|got|has|have|contains?|with|from)\s+(?:only |from |with |model with |model from |scene with )*0 (?:initial |sparse |sfm |3d |colmap |input |valid |scene )*(?:points|points3d|vertices|gaussians|splats|GSs?)\b(?! (?:in common|of|per|to|outside|inside|below|above|behind|with|near|that|more|fewer))|\b(?:sfm|sparse|initial|3d|seed)[ _]points\s*[:=]\s*0(?!\d|[.,]\d)|\belement vertex 0\b",
            r"(?i)\b(?:points3d(?:\.(?:bin|txt|ply))?|(?:sparse |initial |input |sfm )?point ?cloud)\b[^\n]{0,60}\b(?:is empty|(?:has|contains|with) (?:no|0|zero) points|no points\b)|\b(?:no|zero) (?:initial |sparse |sfm |3d )*points (?:were |was )?(?:found|loaded|triangulated|read)|(?:no (?:sparse )?point cloud (?:was )?(?:loaded|to initiali)|\bempty (?:sparse |initial |sfm )?point ?cloud\b)",
            r"^(?:[IWE]\d[^\]]*\] )?\s*Points(?:3D)?:\s+0\s*$|Could not fuse any points",
            r"Found array with 0 sample\(s\) \(shape=\(0, 3\)\)|n_neighbors <= n_samples(?:_fit)?\b[^\n]*n_samples(?:_fit)? = 0\b",
        ),
        unless=re.compile(r"(?i)^\s*=> |\bsees 0 /|removed|pruned|filtered|outliers|skipp|random(?:ly)? (?:point|init)|Namespace\(|Config\(|will use random|\b0 points? (?:were |was )?(?:removed|merged|completed)"),
        accept=_is_of_points,
    ),
    Rule(
        name="corrupt-data",
        cause="dataset_corrupt",
        tier=Tier.SPECIFIC,
        looks="`cannot identify image file`, `image file is truncated`, `BadZipFile`, `PytorchStreamReader failed`, "
        "`invalid load key`, `Unable to open file (truncated file`",
        why="A file of the data set, or a checkpoint, is truncated or not what its name says; often a download or copy "
        "that was interrupted.",
        remedy="Fetch or copy the named file again and compare sizes and sha256; delete the "
        "partial one. For a checkpoint: resume from the one before.",
        phase="load",
        patterns=patterns(
            r"UnidentifiedImageError|cannot identify image file|image file is truncated|broken data stream when reading image|Truncated File Read|unrecognized data stream contents",
            r"BadZipFile|File is not a zip file|tarfile\.ReadError|not a gzip file|BadGzipFile|Compressed file ended before|End-of-central-directory signature not found|cannot find zipfile directory|does not look like a tar archive|Unexpected EOF in archive|not in gzip format|zlib\.error|(?i:unexpected end of (?:file|archive|data)\b|invalid compressed data|corrupt(?:ed)? (?:zip|tar|gzip|archive))",
            r"PytorchStreamReader failed|UnpicklingError|pickle data was truncated|invalid load key|Error while deserializing header|MetadataIncompleteBuffer|HeaderTooLarge|InvalidHeaderDeserialization|EOFError: Ran out of input|Ply(?:Element)?(?:Header)?ParseError|early end-of-file",
            r"(?i)(?:sha256|sha1|md5|checksum|crc|hash)\S*(?: sum)?[^\n]{0,40}(?:mismatch|does not match|did not match|failed|differ)|NonMatching(?:Checksum|SplitsSizes)Error|invalid hash value|BadCRC|Bad CRC",
            r"(?i)unable to (?:synchronously )?open file \((?:truncated|file signature|bad)|Parquet magic bytes not found|Corrupt snappy|DataLossError|corrupted record|lmdb\.Corrupted|(?:file|data ?set|dataset|image|shard|index|checkpoint) [^\n]{0,120}\b(?:is|are|seems|appears|looks)(?: to be)? (?:corrupt|truncated|damaged)",
            r"cv2\.error[^\n]*(?:!_src\.empty\(\)|!ssize\.empty\(\)|empty\(\))|(?i:Premature end of JPEG|Corrupt JPEG data|libpng error|CRC error|could not (?:read|decode|load) (?:image|frame|video))|JSONDecodeError|struct\.error: unpack",
        ),
        unless=re.compile(r"(?i)skipping|skipped|ignor(?:ed|ing)|wandb|warn(?:ing)?\b"),
    ),
)  # fmt: skip
