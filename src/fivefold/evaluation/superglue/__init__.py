"""SuperGLUE (Wang et al. 2019, arXiv:1905.00537) as text to text, in the form that T5 gave it (arXiv:1910.10683)."""
