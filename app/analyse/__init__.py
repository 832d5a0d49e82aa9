"""`zoetrope analyse`: a clip and a model in, a cache profile and a page that explains it out."""
