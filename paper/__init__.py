"""The studies of the paper's claims: their files, results, figures and the page results.md."""
