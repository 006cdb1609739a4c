"""How the embedded encoder came about: photographs, training, measures (shade_fast/encoders/embedded/CARD.md)."""
