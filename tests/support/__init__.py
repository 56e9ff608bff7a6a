"""What the tests share: builders, the dialogue player, fakes of the ports."""
