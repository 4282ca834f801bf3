"""How it is touched: explorers in JupyterLab and Voilà, a module an explorer."""
