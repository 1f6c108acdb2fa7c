"""Names of the classes that the published detectors know, and COCO's ids of them.

A class's number, that of a detection's `labels`, is its place in the table, from 0. In COCO's own
files a class has an id: the numbers 1 to 90, ten of which stand for no class.

Source: COCO's 80 classes of 2017 (Lin et al., ECCV 2014), in the order of their ids.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DetectionClass:
    """A class of a detection data set.

    Attributes:
        name: in English.
        id: its `category_id` in annotations and results.
    """

    name: str
    id: int


# A dash stands for an id without a class.
_COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, -, stop sign, parking meter, bench, bird, cat, dog, horse, sheep,
cow, elephant, bear, zebra, giraffe, -, backpack, umbrella, -, -,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon,
bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, -, dining table, -, -, toilet,
-, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster,
sink, refrigerator, -, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""

DETECTION_CLASSES: dict[str, tuple[DetectionClass, ...]] = {
    "coco": tuple(
        DetectionClass(name.strip(), number)
        for number, name in enumerate(_COCO.replace("\n", " ").split(","), start=1)
        if name.strip() != "-"
    )
}


def detection_classes(data: str) -> tuple[DetectionClass, ...]:
    """The classes of a data set, in the order of a published detector's labels.

    Args:
        data: "coco" (80 classes).

    Raises:
        ValueError: there is no such table.
    """
    found = DETECTION_CLASSES.get(data)
    if found is None:
        raise ValueError(
            f"`data` must be one of {', '.join(DETECTION_CLASSES)}. Received: data={data!r}"
        )
    return found
