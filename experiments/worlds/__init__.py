"""How the embedded models were trained, and the tables of their README."""
