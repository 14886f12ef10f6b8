"""Samples: tasks and scenarios, views of their images, batches on the device, augmentation.

It must not know networks or strategies.
"""
