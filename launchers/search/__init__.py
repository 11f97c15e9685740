"""`retain search`: points of a study's search space, proposed one by one, trained as paths of the ordinary tree."""
