# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
#
# spotvlm on a Jetson with JetPack 6 (Ubuntu 22.04, so ROS 2 Humble), from the checkout, on the Jetson:
#   docker build --file docker/jetson.Dockerfile --tag spotvlm:jetson .
#   docker run --rm --runtime=nvidia --network=host --ipc=host spotvlm:jetson
# docs/workspace.md explains the options, and says what to take on JetPack 7.
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

# The same user as on the host: Fast DDS's shared memory is closed to others.
ARG UID=1000
# NVIDIA's builds of torch for this JetPack; those on PyPI do not know the GPU of a Jetson with it.
ARG TORCH="--index-url https://pypi.jetson-ai-lab.io/jp6/cu126 torch"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV LANG=C.UTF-8 ROS_DISTRO=humble

ADD --chmod=644 https://raw.githubusercontent.com/ros/rosdistro/master/ros.key \
    /usr/share/keyrings/ros-archive-keyring.gpg
# hadolint ignore=DL3008
RUN echo "deb [signed-by=/usr/share/keyrings/ros-archive-keyring.gpg] \
http://packages.ros.org/ros2/ubuntu jammy main" > /etc/apt/sources.list.d/ros2.list \
 && apt-get update \
 && apt-get install --yes --no-install-recommends build-essential cmake make python3-matplotlib \
      python3-colcon-common-extensions python3-numpy python3-opencv python3-pil python3-venv \
      python3-yaml ros-humble-ros-base ros-humble-vision-msgs \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --shell /bin/bash --non-unique --uid "$UID" --groups video robot

# hadolint ignore=DL3066
USER robot
WORKDIR /home/robot
ENV PATH=/home/robot/venv/bin:$PATH
COPY --chown=robot requirements.lock spotvlm_ros/system/requirements.py docker/install-python.sh \
     setup/
# A word of TORCH is an argument each.
# hadolint ignore=SC2086
RUN mkdir ws && python3 -m venv --system-site-packages venv && setup/install-python.sh $TORCH

COPY --chown=robot . spotvlm
WORKDIR /home/robot/ws
# By the venv's Python: the nodes start with the interpreter that has built them.
RUN make -C ../spotvlm workspace WS=/home/robot/ws \
 && . /opt/ros/humble/setup.bash && python -m colcon build && rm -rf build log

ENTRYPOINT ["/home/robot/spotvlm/docker/entrypoint.sh"]
CMD ["ros2", "launch", "spotvlm_ros", "driving.launch.py"]
