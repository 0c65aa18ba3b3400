"""Bridges to other libraries: scikit-learn's estimators, the Hugging Face Hub."""
