"""The cluster port on one machine: containers become processes, ConfigMaps become files."""
