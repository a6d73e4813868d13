"""Adapters to CVAT and FiftyOne; that to Label Studio is a part of the server: `fusioner.serve.label_studio`."""
