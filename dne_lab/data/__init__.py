"""What goes in: sources of images, streams of classes, augmentation, exemplar memory."""
