"""The registered model as MLflow loads it: models-from-code, so that nothing is pickled.

Examples:
    model = mlflow.pyfunc.load_model("models:/radloop@champion")
    model.predict(pandas.DataFrame({"image": [png], "question": ["Is the heart enlarged?"]}))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class RadloopModel(PythonModel):
    """Answers rows of an encoded `image` and a `question`."""

    def load_context(self, context: Any) -> None:
        """Load base and adapter from the model's own files."""
        from radloop.answering import Answerer

        self.answerer = Answerer(Path(context.artifacts["adapter"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Return one answer per row.

        Args:
            context: MLflow's own.
            model_input: Columns `image` (bytes of an encoded file) and `question` (text).
            params: Unused.
        """
        rows = zip(model_input["image"], model_input["question"], strict=True)
        return [self.answerer.answer(bytes(image), question).text for image, question in rows]


set_model(RadloopModel())
