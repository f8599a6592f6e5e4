# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
#
# spotvlm on ROS 2 Kilted, from the checkout:
#   docker build --file docker/kilted.Dockerfile --tag spotvlm:kilted .
#   docker run --rm --network=host --ipc=host spotvlm:kilted
# docs/workspace.md explains the options.
FROM ros:kilted-ros-base

# The same user as on the host: Fast DDS's shared memory is closed to others.
ARG UID=1000
# Where torch comes from. With a GPU: --build-arg TORCH=torch==2.13.0
ARG TORCH="--find-links https://download.pytorch.org/whl/cpu/torch/ torch==2.13.0"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends make python3-matplotlib python3-numpy \
      python3-opencv python3-pil python3-venv python3-yaml ros-kilted-vision-msgs \
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
 && . /opt/ros/kilted/setup.bash && python -m colcon build && rm -rf build log

ENTRYPOINT ["/home/robot/spotvlm/docker/entrypoint.sh"]
CMD ["ros2", "launch", "spotvlm_ros", "driving.launch.py"]
