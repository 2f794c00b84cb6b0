"""What a weight set is, takes and gives, as plain values, as a model card and as a STAC item.

All of it comes from the records and from the models themselves, built without memory for their weights, so that no
card can say anything else than what the code does.
"""

from eo_zoo.describe.card import PIPELINES, document, front_matter, header, markdown, terms
from eo_zoo.describe.facts import facts
from eo_zoo.describe.stac import mlm

__all__ = ["PIPELINES", "document", "facts", "front_matter", "header", "markdown", "mlm", "terms"]
