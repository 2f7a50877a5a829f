"""A page that stays small enough to be sent: its pictures are stored smaller where it would be too large."""

from __future__ import annotations

import base64
import io
import re

from PIL import Image

MAX_BYTES = 15 * 10**6
NOTE_PLACE = "<!-- pictures -->"  # where a page says what was done to its pictures
SMALL_PICTURE = 2_000  # characters; smaller pictures stay as they are
ATTEMPTS = ((1.0, 90), (0.5, 85), (0.25, 80))  # (scale of the sides, JPEG quality), until the page is small enough

PICTURE = re.compile(r'src="data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)"')
LEFT_OUT = 'src="data:," alt="left out, so that the page stays small"'


def fit_pictures(text: str, limit: int = MAX_BYTES) -> str:
    """The page with its pictures encoded again where it has more than `limit` bytes, and a note that says so."""
    if len(text.encode()) <= limit:
        return text.replace(NOTE_PLACE, "", 1)

    # Photographs become JPEG, then smaller ones.
    before = text
    for scale, quality in ATTEMPTS:
        text = PICTURE.sub(lambda match, s=scale, q=quality: _encoded_again(match, s, q), before)
        size = "full size" if scale == 1 else f"{scale:g} times their size"
        note = f"To keep this page below {limit / 1e6:g} MB, its pictures are stored as JPEG at {size}."
        if len(text.encode()) + 1000 <= limit:
            return text.replace(NOTE_PLACE, f'<p class="note">{note}</p>', 1)

    # Then the largest are left out.
    pictures = sorted(PICTURE.findall(text), key=len, reverse=True)
    num_left_out = 0
    for picture in dict.fromkeys(pictures):
        if len(text.encode()) + 1000 <= limit:
            break
        num_left_out += text.count(picture)
        text = re.sub(rf'src="data:image/[a-z]+;base64,{re.escape(picture)}"', LEFT_OUT, text)
    note += f" {num_left_out} of them are left out."
    return text.replace(NOTE_PLACE, f'<p class="note">{note}</p>', 1)


def _encoded_again(match: re.Match[str], scale: float, quality: int) -> str:
    """A picture as JPEG, unless it is small or would grow."""
    if len(match[1]) < SMALL_PICTURE:
        return match[0]
    with Image.open(io.BytesIO(base64.b64decode(match[1]))) as image:
        sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        resized = image.convert("RGB").resize(sides, Image.Resampling.BOX)
    buffer = io.BytesIO()
    resized.save(buffer, format="JPEG", quality=quality)
    encoded = f'src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"'
    return min(match[0], encoded, key=len)
