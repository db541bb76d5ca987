"""The field's headline claims, each as a study of five replicates; 16 windows where effects are large."""
