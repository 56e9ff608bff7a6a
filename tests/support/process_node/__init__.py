# SPDX-License-Identifier: Apache-2.0
"""A cluster whose only node runs containers as processes: for end-to-end tests without a container engine.

The API server, etcd, the controller manager and the scheduler are those of Kubernetes.
This package does what the kubelet, the container runtime, the network plug-in,
kube-proxy and the cluster's DNS server do, with the kernel's own network namespaces,
mounts and packet filter.
"""
