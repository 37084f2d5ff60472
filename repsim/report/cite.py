"""What a reader of a report cites: the tool, the paper under test, its critics."""

BIBTEX = """\
@software{{repsim,
  title   = {{repsim: what adversarial training does to the representations inside vision models}},
  author  = {{{{The repsim developers}}}},
  year    = {{2026}},
  version = {{{version}}}
}}

@article{{ghofrani2023rethinking,
  title   = {{Rethinking Robust Contrastive Learning from the Adversarial Perspective}},
  author  = {{Ghofrani, Fatemeh and Yaghouti, Mehdi and Jamshidi, Pooyan}},
  journal = {{arXiv:2302.02502}},
  year    = {{2023}}
}}

@article{{klabunde2025revisiting,
  title   = {{Revisiting the Relation Between Robustness and Universality}},
  author  = {{Klabunde, Max and Caspari, Laura and Lemmerich, Florian}},
  journal = {{arXiv:2510.19427}},
  year    = {{2025}}
}}
"""
