"""How a registered model is served: the MLflow model, the BentoML service, the chat page."""
