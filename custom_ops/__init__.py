"""C++ and CUDA sources of DCNv3, installed as ``keras_internimage.custom_ops``.

The folder holds sources and what builds them. Importing it builds nothing and imports no framework.
"""
