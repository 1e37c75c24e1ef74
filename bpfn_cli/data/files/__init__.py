# SPDX-License-Identifier: MIT
"""Readers and writers of file formats: arrays, clouds, images, archives."""
