"""What a loss needs of the cosines, however they are taken."""
