"""What the commands in scripts/ share: arguments, data, training runs, cards. The model never imports it."""
