"""What a machine is: devices, links, clusters and software stacks as data with units and sources."""
